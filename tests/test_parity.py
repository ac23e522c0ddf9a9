"""The released presets give the numbers of the authors' code, stage by stage, and each known mistake is seen (see parity.py).

`python tests/parity.py` prints the table.
"""
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from torch.testing import assert_close

from ppqg_nb import audio, grouping
from ppqg_nb.audio import log_mel_patches
from ppqg_nb.core import PRESETS
from ppqg_nb.vct import VCT
from parity import TASKS, compared, errors, losses, model, stages, tolerance

each_task = pytest.mark.parametrize('task', TASKS)


@each_task
def test_every_stage(task):
    worst = errors(task, stages(model(task), task))
    print(f'\n{task}', *(f'{name:16} {error:.1e}' for name, error in worst.items()), sep='\n')
    assert len(worst) == len(compared(task)) == (24 if task != 'ms3' else 21)
    assert {name: e for name, e in worst.items() if not e <= tolerance(name)} == {}


def test_bfloat16():
    worst = errors('s4', stages(model('s4'), 's4', dtype=torch.bfloat16), torch.bfloat16)
    assert {name: e for name, e in worst.items() if not e <= tolerance(name, torch.bfloat16)} == {}
    assert worst['pred_masks_all'] > 1e-3         # it did run in lower precision


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('dtype', (torch.float32, torch.bfloat16))
@each_task
def test_on_a_gpu(task, dtype, monkeypatch):
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn): monkeypatch.setattr(backend, 'allow_tf32', False)
    worst = errors(task, stages(model(task), task, 'cuda', dtype), dtype)
    assert {name: e for name, e in worst.items() if not e <= tolerance(name, dtype)} == {}


@each_task
def test_every_part_of_the_loss(task):
    for name, (ours, theirs) in losses(task).items(): assert ours == pytest.approx(theirs, rel=1e-4), f'{task} {name}'


def unshifted(): return model('s4', always_partition=False)


def swapped():
    vct = model('s4')
    vct.decoder.order = [{'V5': 'V3', 'V3': 'V5'}.get(name, name) for name in vct.decoder.order]
    return vct


@pytest.mark.parametrize('broken, still_right, wrong', [
    (unshifted, 'fused_res4', 'fused_res5'),          # timm's Swin without the shift of the last stage
    (swapped, 'queries', 'pred_logits_all'),          # the decoder from fine to coarse
])
def test_a_known_mistake_is_seen(broken, still_right, wrong):
    worst = errors('s4', stages(broken(), 's4'))
    assert worst[still_right] < 1e-4 and worst[wrong] > 1e-2 and worst['pred_logits_all'] > 1e-2


@cache
def sounds():
    with np.load(Path(__file__).parent/'golden'/'logmel.npz') as file: g = dict(file)
    return {k[4:]: (torch.from_numpy(g[k]), torch.from_numpy(g[f'logmel_{k[4:]}'])) for k in g if k.startswith('pcm_')}


def worst_patch():
    "The largest error over the log-mels of the five golden sounds; infinite where a shape differs."
    found = [(log_mel_patches(pcm, 16000), golden) for pcm, golden in sounds().values()]
    return max((a - b).abs().max().item() if a.shape == b.shape else np.inf for a, b in found)


def centred(x):
    "The STFT with half a window of reflected sound on both sides, as torch and librosa have it by default."
    window = torch.hann_window(audio.WINDOW, dtype=x.dtype)
    x = torch.stft(x, audio.FFT, audio.HOP, audio.WINDOW, window, center=True, return_complex=True).abs().transpose(-1, -2)
    return x[..., :audio.FRAMES, :]


def linear_triangles(dtype=torch.float64, device=None):
    "HTK's mel bands as torchaudio makes them: triangles that are linear in Hz, not in mel."
    return torchaudio.functional.melscale_fbanks(257, audio.LOW, audio.HIGH, 64, 16000, mel_scale='htk').to(device, dtype)


def filled_up(waveform, rate, steps=None):
    "Whole patches only, continued with 0 in the log-mel, which is not the log of silence."
    x = log_mel_patches(waveform, rate)
    return torch.cat([x, torch.zeros(max(0, steps - len(x)), 96, 64)])


@pytest.mark.parametrize('name, mistake', [('stft_magnitude', centred), ('mel_matrix', linear_triangles)])
def test_a_known_mistake_of_the_front_end_is_seen(name, mistake, monkeypatch):
    assert worst_patch() < 1e-4
    monkeypatch.setattr(audio, name, mistake)
    assert worst_patch() > 1e-2


def test_padding_log_mels_with_zero_is_seen():
    silence = sounds()['silence5'][1][:1]
    pcm, golden = sounds()['chirp1']
    for i, wanted in ((0, golden), (2, silence)):        # the sound ends in patch 1
        assert_close(log_mel_patches(pcm, 16000, steps=3)[i:i + 1], wanted, atol=1e-4, rtol=0)
    assert (filled_up(pcm, 16000, steps=3)[2:] - silence).abs().max() > 4


def test_assigning_by_the_logits_is_seen():
    "Where rounding makes two queries equal, the released code takes the first; the logits still tell them apart."
    logits = torch.zeros(1, 3, 2)
    logits[0, 2, 0] = 1e-9
    numpy = np.exp(logits.numpy())/np.exp(logits.numpy()).sum(1, keepdims=True)     # float32
    assert numpy.argmax(1).tolist() == grouping.hard(logits.softmax(1)).argmax(1).tolist() == [[0, 0]]
    assert grouping.hard(logits).argmax(1).tolist() == [[2, 0]]


@each_task
def test_parameters_are_as_many_as_released(task):
    with torch.device('meta'): vct = VCT(PRESETS[f'released-{task}-swin-base-384'])
    counts = dict(avss=222_238_549, s4=222_208_528, ms3=221_807_887)      # of the released state dict, less VGGish's head
    assert sum(p.numel() for p in vct.parameters()) == counts[task]


def test_full_size_runs():
    "Swin-B, embedding 128, depths 2-2-18-2, both encoders: one frame of 384 x 384 and its sound."
    vct = VCT.from_preset('released-ms3-swin-base-384').eval()
    image = torch.randint(256, (1, 3, 384, 384), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode(): pred = vct(image, torch.full((1, 96, 64), -4.605), image)
    assert pred.class_logits.shape == (1, 100, 3) and pred.mask_logits.shape == (1, 100, 96, 96) and len(pred.layers) == 10
    assert pred.class_logits.isfinite().all() and pred.mask_logits.isfinite().all()
