"The front end on any sound: golden numbers, properties, and a sentence for each mistake."
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from ppqg_nb.audio import OFFSET, PCM, SPAN, cut_patches, log_mel, log_mel_patches, patches_at, resample, to_mono

GOLDEN = np.load(Path(__file__).parent/'golden'/'logmel.npz')
NAMES = sorted(name[4:] for name in GOLDEN.files if name.startswith('pcm_'))
SILENCE = math.log(OFFSET)
RATES = (1, 7, 8000, 11025, 16000, 22050, 32000, 44056, 44100, 44101, 48000, 96000, 192000)

quick = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def sounds(draw, dtypes=(*PCM, torch.float16, torch.bfloat16, torch.float32, torch.float64)):
    "A waveform of any dtype, channel count and length, and a rate."
    dtype, rate = draw(st.sampled_from(dtypes)), draw(st.sampled_from(RATES))
    longest = max(2, min(3*rate, 100_000 if rate > 7 else 20))
    shape = draw(st.sampled_from([(), (1,), (2,), (6,)])) + (draw(st.integers(1, longest)),)
    seed, loud = draw(st.integers(0, 2**31)), draw(st.sampled_from([0., 1e-6, .5, 1.]))
    x = loud*(2*torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1)
    if dtype in PCM:
        zero, full = PCM[dtype]
        limits = torch.iinfo(dtype)
        x = (x.double()*full + zero).round().clamp(limits.min, limits.max)
    return x.to(dtype), rate


@quick
@given(sounds())
def test_any_sound_gives_finite_patches(sound):
    waveform, rate = sound
    patches = log_mel_patches(waveform, rate)
    n = -(-waveform.shape[-1]*16000//rate)
    assert patches.shape == (max(0, (n - SPAN)//15360 + 1), 96, 64)
    assert patches.dtype == torch.float32 and torch.isfinite(patches).all()
    assert (patches >= SILENCE - 1e-5).all()


@quick
@given(sounds(), st.integers(0, 7), st.sampled_from([.04, .5, .96, 1., 1/24]))
def test_as_many_patches_as_asked_for(sound, steps, period):
    waveform, rate = sound
    patches = log_mel_patches(waveform, rate, steps=steps, period=period)
    assert patches.shape == (steps, 96, 64) and torch.isfinite(patches).all()
    free = log_mel_patches(waveform, rate, period=period)
    both = min(steps, len(free))
    assert torch.equal(patches[:both], free[:both])


@quick
@given(sounds((torch.float64,)), st.floats(.01, 100))
def test_gain_scales_the_magnitudes(sound, gain):
    waveform, rate = sound
    mel, louder = (log_mel_patches(w, rate, steps=1).double().exp() - OFFSET for w in (waveform, gain*waveform))
    # float32 keeps the log to 5e-7, so the magnitude plus offset to a few millionths of itself
    assert torch.allclose(louder, gain*mel, rtol=2e-5, atol=2e-7*(1 + gain))


@quick
@given(sounds(), st.lists(st.floats(-1e12, 1e12), max_size=5))
def test_any_time_gives_a_finite_patch(sound, times):
    patches = patches_at(*sound, times)
    assert patches.shape == (len(times), 96, 64) and patches.dtype == torch.float32 and torch.isfinite(patches).all()


@quick
@given(sounds(), st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_nan_and_infinity_raise(sound, bad, data):
    waveform, rate = sound
    x = waveform.to(torch.float32).flatten()
    x[data.draw(st.integers(0, len(x) - 1))] = bad
    with pytest.raises(ValueError, match='NaN'): log_mel_patches(x.view(waveform.shape), rate)


@pytest.mark.parametrize('name', NAMES)
def test_golden(name):
    patches, golden = log_mel_patches(GOLDEN[f'pcm_{name}'], 16000), torch.from_numpy(GOLDEN[f'logmel_{name}'])
    assert patches.shape == golden.shape and len(NAMES) == 5
    assert (patches - golden).abs().max() <= 1e-4



@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int16, torch.int32, torch.float32, torch.float64])
def test_integers_mean_what_floats_mean(dtype):
    x = torch.tensor([-1, -.5, 0, .5]).double()
    zero, full = PCM.get(dtype, (0, 1))
    assert torch.equal(to_mono((x*full + zero).to(dtype)), x)


def test_arrays_lists_and_channels():
    x = .1*torch.randn(2, 20000)
    wanted = log_mel_patches(x.double().mean(0), 16000)
    for waveform in (x, x.numpy(), x.tolist(), x.numpy().astype('<f4')[:, ::1]):
        assert torch.allclose(log_mel_patches(waveform, 16000), wanted, atol=1e-4)
    assert torch.equal(log_mel_patches(x[:1], 16000), log_mel_patches(x[0], 16000))


@pytest.mark.parametrize('rate', [8000, 11127, 22050, 44100, 44101, 48000])
def test_a_tone_survives_resampling(rate):
    tone = lambda r: torch.sin(2*torch.pi*1000*torch.arange(r//2).double()/r)
    assert (resample(tone(rate), rate) - tone(16000))[100:7900].abs().max() < 2e-3


@pytest.mark.parametrize('seconds, T', [(.5, 0), (.96, 0), (.975, 1), (1, 1), (5, 5), (10, 10)])
def test_number_of_patches(seconds, T):
    for rate in (16000, 44100, 48000):
        for period in (.96, 1.):
            assert len(log_mel_patches(torch.zeros(round(seconds*rate)), rate, period=period)) == T


def test_the_waveform_is_padded_never_the_log_mel():
    x = .1*torch.randn(16000)
    patches = log_mel_patches(x, 16000, steps=4)
    assert torch.equal(patches, log_mel_patches(torch.cat([x, torch.zeros(48000)]), 16000, steps=4))
    assert torch.allclose(patches[2:], torch.tensor(SILENCE, dtype=torch.float32))


def test_one_patch_a_second_keeps_the_clock():
    x = torch.zeros(10*16000)
    for second in range(10): x[16000*second + 800] = 1        # a click 50 ms into each second
    patches = log_mel_patches(x, 16000, period=1.)
    assert len(patches) == 10 and torch.allclose(patches, patches[:1].expand(10, -1, -1), atol=1e-6)


def test_patches_are_the_frames_of_the_whole_sound():
    x = .1*torch.randn(80000, dtype=torch.float64)
    assert torch.allclose(log_mel_patches(x, 16000), log_mel(x)[:480].unflatten(0, (5, 96)).float(), atol=1e-6)


def test_patches_at_is_centred():
    x = torch.zeros(48001)
    x[24000] = 1
    patch = patches_at(x, 16000, [1.5])[0]
    assert torch.allclose(patch, patch.flip(0), atol=.2)      # the window is periodic, so nearly but not wholly symmetric
    assert torch.equal(patch, patches_at(np.asarray(x), 16000, np.array([0, 1.5, 1]))[1])
    assert torch.equal(patches_at(x, 16000, [1.5])[0], cut_patches(x.double(), torch.tensor([24000 - 7800]))[0])


@pytest.mark.parametrize('waveform, sentence', [
    (torch.tensor(1.), 'must be .n,. or'), (torch.zeros(1, 2, 100), 'must be .n,. or'), (torch.zeros(0), 'is empty'),
    (torch.zeros(0, 100), 'is empty'), (torch.zeros(2, 0), 'is empty'), (torch.zeros(44100, 2), 'transpose it'),
    (torch.zeros(100).bool(), 'is bool'), (torch.zeros(100).long(), 'is int64'),
    (torch.zeros(100, dtype=torch.complex64), 'is complex64'), (torch.tensor([1e300], dtype=torch.float64), 'NaN')])
def test_mistakes_get_a_sentence(waveform, sentence):
    with pytest.raises(ValueError, match=sentence): log_mel_patches(waveform, 16000)
    with pytest.raises(ValueError, match=sentence): patches_at(waveform, 16000, [0.])


@pytest.mark.parametrize('rate', [0, -44100, 44100.5, math.nan, math.inf])
def test_rate_must_be_whole_and_positive(rate):
    with pytest.raises(ValueError, match='rate is'): log_mel_patches(torch.zeros(100), rate)


@pytest.mark.parametrize('options', [dict(steps=-1), dict(steps=1.5), dict(period=0), dict(period=-1.), dict(period=math.nan)])
def test_steps_and_period(options):
    with pytest.raises(ValueError, match='must be'): log_mel_patches(torch.zeros(100), 16000, **options)


@pytest.mark.parametrize('times', [3., [[0.]], [math.nan], [math.inf]])
def test_times_are_a_row_of_seconds(times):
    with pytest.raises(ValueError, match='times'): patches_at(torch.zeros(100), 16000, times)


def test_gradient_reaches_the_waveform():
    for rate in (16000, 44101):
        x = (.1*torch.randn(50000)).requires_grad_()
        log_mel_patches(x, rate).sum().backward()
        assert torch.isfinite(x.grad).all() and x.grad[:SPAN].any()
