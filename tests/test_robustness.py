"What is done to a sound is done by the amount that is said, and what comes of it is known for cheats."
import json, math

import numpy as np
import pytest
import torch
from test_listening import Cheat, everything, listens, nothing

from ppqg_nb import listening, robustness, scenes
from ppqg_nb.audio import RATE
from ppqg_nb.core import SCENE_CLASSES
from ppqg_nb.listening import made
from ppqg_nb.robustness import (DISTURBANCES, added, as_text, coded, delayed, either, gained, measure, measure_all, narrowed,
                                no_codec, off_screen, patches_of, reverberated, white)

needs_codec = pytest.mark.skipif(no_codec() is not None, reason=str(no_codec()))
SMALL = dict(clips=3, size=48, steps=2, times=20)


@pytest.fixture(scope='module')
def dubs(): return scenes.dubs(2, 4, 'single', 2, 48, 3)


@pytest.fixture(scope='module')
def cheat():
    "Makes cheats that know the scenes which `measure` asks, and their own sounds"
    sets = {k: made(lambda i, k=k: scenes.dubs(2, i, k, 2, 48, 2), scenes.CLASSES, SCENE_CLASSES) for k in ('single', 'multi')}
    return lambda choose: Cheat(sets, choose, SMALL['clips'])


def decibels(x, y): return 10 * (x.double().square().sum() / y.double().square().sum()).log10().item()


# sounds

@pytest.mark.parametrize('snr', [-10, -3.3, 0, 5, 20])
@pytest.mark.parametrize('other', ['noise', 'voice'])
def test_ratio_is_exact(dubs, snr, other):
    x = dubs[0].waveform
    z = white(len(x), 3) if other == 'noise' else dubs[1].waveform
    assert decibels(x, added(x, z, snr).double() - x) == pytest.approx(snr, abs=.01)


def test_nothing_is_added_to_or_by_silence(dubs):
    x = dubs[0].waveform
    assert torch.equal(added(x, 0 * x, 0), x) and torch.equal(added(0 * x, x, 0), 0 * x)


def test_white_noise_is_white_even_and_its_own():
    w = white(2**16, 1)
    assert w.dtype == torch.float32 and -1 <= w.min() < -.999 and .999 < w.max() < 1 and abs(w.mean()) < .01
    assert w.square().mean() == pytest.approx(1 / 3, rel=.02) and abs((w[1:] * w[:-1]).mean()) < .01
    assert torch.equal(w, white(2**16, 1)) and not torch.equal(w, white(2**16, 2))


@pytest.mark.parametrize('gain', [-30, -10, 0, 10, 30])
def test_gain_is_exact_until_it_is_cut_off(dubs, gain):
    x = dubs[0].waveform
    y = gained(x, gain)
    whole = (x * 10**(gain / 20)).abs() < 1
    assert torch.allclose(y[whole], x[whole] * 10**(gain / 20)) and y.abs().max() <= 1
    if gain <= 0: assert decibels(y, x) == pytest.approx(gain, abs=.001)


@pytest.mark.parametrize('rt60', [.2, .7, 2])
def test_reverberation_keeps_length_and_strength(dubs, rt60):
    x = dubs[0].waveform
    y = reverberated(x, rt60, 0)
    assert y.shape == x.shape and y.dtype == x.dtype and decibels(y, x) == pytest.approx(0, abs=.001)
    assert torch.equal(y, reverberated(x, rt60, 0)) and not torch.equal(y, reverberated(x, rt60, 1))


def test_no_room_changes_nothing(dubs): assert torch.equal(reverberated(dubs[0].waveform, 0, 1), dubs[0].waveform)


@pytest.mark.parametrize('rt60', [.3, 1.])
def test_tail_falls_by_sixty_decibels(rt60):
    click = torch.zeros(2 * RATE)
    click[0] = 1
    tail = reverberated(click, rt60, 4).double()
    level = 10 * tail[:int(rt60 * RATE)].view(-1, 400).square().mean(1).log10()
    slope = np.polyfit(np.arange(len(level)) * 400 / RATE, level.numpy(), 1)[0]
    assert slope * rt60 == pytest.approx(-60, abs=2.5) and tail[int(rt60 * RATE):].abs().max() < 1e-6


def test_silence_reverberates_as_silence(): assert not reverberated(torch.zeros(800), .5, 0).any()


@pytest.mark.parametrize('rate', [8000, 4000, 2000])
def test_narrow_band_keeps_what_is_below_and_loses_what_is_above(rate):
    t = torch.arange(RATE) / RATE
    low, high = (torch.sin(2 * math.pi * f * t) for f in (rate / 4, rate * .75))
    assert len(narrowed(low, rate)) == RATE and narrowed(low, rate).dtype == torch.float32
    assert (narrowed(low, rate) - low)[800:-800].abs().max() < .02 and narrowed(high, rate)[800:-800].abs().max() < .02


@pytest.mark.parametrize('n', [1600, 16001, 15999])
def test_narrow_band_keeps_odd_lengths(n): assert len(narrowed(torch.zeros(n), 8000)) == n


@needs_codec
@pytest.mark.parametrize('kbit', [6, 16, 32])
@pytest.mark.parametrize('n', [8000, 48000, 47999])
def test_codec_keeps_length_and_type(dubs, kbit, n):
    x = dubs[0].waveform[:n]
    y = coded(x, kbit)
    assert y.shape == x.shape and y.dtype == torch.float32 and torch.equal(y, coded(x, kbit))


@needs_codec
def test_codec_is_in_step_and_gets_better_with_bits(dubs):
    x = dubs[1].waveform
    match = {k: torch.corrcoef(torch.stack([x, coded(x, k)]))[0, 1].item() for k in (6, 64)}
    assert match[64] > .9 and match[64] > match[6]


def test_missing_codec_is_named_in_a_sentence():
    assert no_codec('nonsense') == 'PyAV has no encoder nonsense here; install a build of FFmpeg that has it.'


@pytest.mark.parametrize('ms, n', [(0, 0), (1, 16), (1000, 16000), (10**7, 48000)])
def test_delay_begins_with_silence(dubs, ms, n):
    x = dubs[0].waveform
    y = delayed(x, ms)
    assert y.shape == x.shape and not y[:n].any() and torch.equal(y[n:], x[:len(x) - n])


def test_voice_off_screen_is_off_screen(dubs):
    from unittest.mock import patch
    for i in range(8):
        s = scenes.scene(2, i, 'single', 48, 1)
        with patch.object(scenes, 'sound', wraps=scenes.sound) as spy: x = off_screen(s, i)
        (k,) = spy.call_args.args[0].classes
        assert k not in s.cast.classes and 1 <= k <= 8 and torch.equal(x, off_screen(s, i))
        assert x.shape == s.waveform.shape and scenes.rms(x.numpy()) == pytest.approx(.03, rel=.1)


@pytest.mark.parametrize('name', list(DISTURBANCES))
def test_every_disturbance_is_a_function_of_its_input(name, dubs):
    d = DISTURBANCES[name]
    if name == 'codec' and no_codec(): pytest.skip(no_codec())
    for s in d.strengths:
        x = d.sound(dubs, 4, s)
        assert x.shape == dubs[0].waveform.shape and x.dtype == torch.float32 and torch.equal(x, d.sound(dubs, 4, s))
    assert d.truth(dubs).shape == dubs[0].labels.shape and d.unit is not None


@pytest.mark.parametrize('name', ['softer', 'louder', 'reverberation', 'narrow band', 'delay'])
def test_the_mildest_strength_is_none(name, dubs):
    d = DISTURBANCES[name]
    assert torch.equal(d.sound(dubs, 4, d.strengths[0]), dubs[0].waveform)


def test_patches_are_those_of_the_scene(dubs): assert torch.equal(patches_of(dubs[0].waveform, 3), dubs[0].patches)


def test_two_voices_have_two_objects(dubs):
    both = either(dubs)
    assert set(both.unique().tolist()) == {0} | {int(s.labels.max()) for s in dubs}


# scores

def test_who_hears_loses_nothing_where_nothing_is_done(cheat):
    found = measure(cheat(listens), 'louder', (0,), **SMALL)
    assert found['undisturbed'] == [1, 1, 1] == found['M_J'][0] and found['no sound'][0] < .5


def test_who_hears_follows_the_other_voice(cheat):
    found = measure(cheat(listens), 'voice swapped', **SMALL)
    assert found['M_J'] == [[1, 1, 1]]


def test_who_hears_is_silent_in_silence(cheat):
    found = measure(cheat(listens), 'silence', **SMALL)
    assert found['M_J'] == [[1, 1, 1]] == [found['no sound']] and found['all objects'][0] < 1


@pytest.mark.parametrize('name', ['white noise', 'voice on screen', 'off screen alone', 'delay'])
def test_who_marks_everything_equals_all_objects(cheat, name):
    found = measure(cheat(everything), name, **SMALL)
    assert all(v == found['all objects'] == found['no sound'] for v in found['M_J'])


def test_who_marks_nothing_is_right_where_nothing_sounds(cheat):
    assert measure(cheat(nothing), 'off screen alone', (0,), **SMALL)['M_J'][0] == [1, 1, 1]
    assert measure(cheat(nothing), 'white noise', (0,), **SMALL)['M_J'][0][0] < .5


def test_two_objects_are_asked_for_where_two_voices_sound(cheat):
    one, two = (measure(cheat(everything), name, (0,), **SMALL)['all objects'][0] for name in ('white noise', 'voice on screen'))
    assert two > one


def test_first_scores_are_those_of_the_columns(cheat):
    found = measure(cheat(listens), 'softer', (0, -20), **SMALL)
    kept = np.array(found['first'])
    assert kept.shape == (3, 5)
    assert kept.mean(0) == pytest.approx([found['undisturbed'][0], found['all objects'][0], found['no sound'][0],
                                          *(v[0] for v in found['M_J'])])


def test_the_visual_half_is_computed_once_for_all_strengths(cheat):
    model = cheat(listens)
    measure(model, 'white noise', **SMALL)
    assert model.looks == SMALL['clips']


def test_unknown_disturbance_lists_those_there_are(cheat):
    with pytest.raises(ValueError, match="no disturbance 'rain'; there are white noise, "): measure(cheat(nothing), 'rain')


def test_all_of_them_with_progress_and_a_missing_codec(cheat, monkeypatch):
    monkeypatch.setattr(robustness, 'no_codec', lambda: 'There is no codec.')
    calls, options = [], {k: v for k, v in SMALL.items() if k != 'clips'}
    found = measure_all(cheat(nothing), 2, lambda *a: calls.append(a), **options)
    total = 2 * (len(DISTURBANCES) - 1)
    assert calls == [(i, total) for i in range(1, total + 1)]
    assert list(found['disturbances']) == list(DISTURBANCES) and found['disturbances']['codec'] == 'There is no codec.'
    assert 'codec: There is no codec.' in as_text(found).splitlines() and json.loads(json.dumps(found)) == found


def test_command_writes_what_it_prints(tmp_path, monkeypatch, capsys, cheat):
    model = cheat(nothing)
    model.state_dict = lambda: dict(w=torch.zeros(1))
    row = dict(unit='dB', strengths=[1], M_J=[[.5, .4, .6]], undisturbed=[.9] * 3, first=[], **{'all objects': [.3] * 3, 'no sound': [0] * 3})
    monkeypatch.setattr(listening.VCT, 'from_pretrained', lambda source: model)
    monkeypatch.setattr(robustness, 'measure_all', lambda m, clips, progress: dict(clips=clips, disturbances=dict(rain=row)))
    robustness.main(['anything', '--clips', '7', '--out', str(tmp_path / 'r.json')])
    result = json.loads((tmp_path / 'r.json').read_text('utf-8'))
    assert (result['model'], result['clips'], result['disturbances']) == ('anything', 7, dict(rain=row))
    assert as_text(result) in capsys.readouterr().out and [p.name for p in tmp_path.iterdir()] == ['r.json']


def test_command_ends_with_a_sentence(capsys):
    with pytest.raises(SystemExit) as e: robustness.main(['no/such/model'])
    assert e.value.code == 1 and 'There is no folder no/such/model' in capsys.readouterr().err
