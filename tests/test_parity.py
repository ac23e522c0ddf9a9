"""The released presets give the numbers of the authors' code, stage by stage, with the same weights (see released.py).

`pytest -n 0 -s tests/test_parity.py` prints the largest error of each stage.
"""
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from ppqg_nb.core import PRESETS
from ppqg_nb.losses import criterion
from ppqg_nb.masks import label_map
from ppqg_nb.prototypes import pool_audio
from ppqg_nb.queries import Generated
from ppqg_nb.vct import VCT, Layer, Prediction
from released import criterion_inputs, fill, inputs, released_key

TASKS = ('avss', 's4', 'ms3')
SWIN = dict(embed_dim=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))       # the small Swin of the golden runs
each_task = pytest.mark.parametrize('task', TASKS)


def config(task, **options): return replace(PRESETS[f'released-{task}-swin-base-384'], backbone_options={**SWIN, **options})


@cache
def golden(task):
    with np.load(Path(__file__).parent/'golden'/f'parity_{task}.npz') as file: return dict(file)


def model(task, **options):
    vct = VCT(config(task, **options)).eval()
    fill(vct)
    return vct


@torch.no_grad()
def stages(vct, task):
    "Every stage that the golden file has, by its name there."
    frames, regions, patches = inputs(task)
    seen, heads = {}, vct.generator.scores
    def keep(name): return lambda module, given, out: seen.update({name: out})
    for name, module in dict(pre=vct.pyramid.regions, fused=vct.pyramid, vggish=vct.vggish, audio=vct.audio,
                             decoded=vct.pixel_decoder).items(): module.register_forward_hook(keep(name))
    pred = vct(frames, patches, regions)
    made, (features, scales) = pred.generated, seen['decoded']
    out = {f'{name}_res{i}': m for name in ('pre', 'fused') for i, m in enumerate(seen[name], 2)}
    out |= {'vggish': seen['vggish'], 'audio': seen['audio'].transpose(1, 2).unflatten(2, (6, 4)), 'mask_features': features}
    out |= {f'ms{i}': m for i, m in enumerate(scales)}
    out |= {'vq_pre_proj': made.pixels, 'vq_mixer': made.embedded.transpose(1, 2), 'vq_pre_attn': made.prompted.transpose(0, 1),
            'vq_assign': made.queries - made.prompted, 'queries': made.queries.transpose(0, 1),
            'pred_logits_all': torch.stack([l.class_logits for l in pred.layers]),
            'pred_masks_all': torch.stack([l.mask_logits for l in pred.layers])}
    out['sem_seg'] = F.interpolate(vct.compose(pred), (224, 224), mode='bilinear')
    if heads:
        out['audio_feat'], proto = heads.features(pool_audio(seen['audio']), vct.generator.prototypes)
        out['proto_feat'] = proto.expand(2, -1, -1)
    return out


def errors(task, found):
    "The largest error of each stage of the golden file."
    g = golden(task)
    def thinned(name): return found[name][..., ::g[f'{name}/grid'], ::g[f'{name}/grid']].flatten()[::g[f'{name}/step']].numpy()
    return {name: np.abs(thinned(name) - g[name]).max() for name in g if f'{name}/step' in g and name in found}


@each_task
def test_every_stage(task):
    found = stages(model(task), task)
    worst, known = errors(task, found), {key[:-5] for key in golden(task) if key.endswith('/step')}
    print(f'\n{task}', *(f'{name:16} {error:.1e}' for name, error in worst.items()), sep='\n')
    assert set(worst) == known
    assert {name: e for name, e in worst.items() if e > (1e-3 if name == 'sem_seg' else 1e-4)} == {}
    truth = torch.from_numpy(golden(task)['sem_seg_argmax']).long()
    assert (label_map(found['sem_seg']) == truth).float().mean() > .9999


@each_task
def test_every_part_of_the_loss(task):
    c = config(task)
    layers, maps, features = criterion_inputs(task, len(c.classes), len(c.sounds))
    targets = [dict(labels=m.unique(), masks=torch.stack([m == k for k in m.unique()])) for m in maps]
    nothing = dict(labels=torch.zeros(0, dtype=torch.long), masks=torch.zeros(0, 384, 384, dtype=torch.bool), annotated=False)
    targets += [dict(nothing) for _ in range(5 - len(targets))]
    if task == 's4': targets = [dict(t, sounds=torch.tensor([6])) for t in targets]       # the golden run's category
    scores = features and features[0] @ features[1].T/0.07
    pred = Prediction(tuple(Layer(*l) for l in layers), Generated(torch.zeros(0), scores=scores), (384, 384), (384, 384))
    torch.manual_seed(0)
    _, parts = criterion(pred, targets, c)
    theirs = dict(cls='ce', bce='mask', dice='dice')
    for name, value in parts.items():
        part, _, layer = name.partition('_')
        key = 'loss/loss_proto' if part == 'pac' else f'loss/loss_{theirs[part]}' + ('' if layer == '9' else f'_{layer}')
        assert_close(value.double(), torch.tensor(golden(task)[key]), rtol=1e-4, atol=0, msg=lambda m: f'{task} {name}: {m}')
    assert len(parts) == sum(key.startswith('loss/') for key in golden(task))


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


@each_task
def test_parameters_have_the_released_names(task):
    "Every parameter of ours is one of theirs or a third of one, at full size."
    with torch.device('meta'): vct = VCT(PRESETS[f'released-{task}-swin-base-384'])
    names = [released_key(name) for name, _ in vct.named_parameters()]
    assert len(set(names)) == len(names)
    counts = dict(avss=222_238_549, s4=222_208_528, ms3=221_807_887)      # of the released state dict, less VGGish's head
    assert sum(p.numel() for p in vct.parameters()) == counts[task]
