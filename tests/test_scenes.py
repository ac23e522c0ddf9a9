"Scenes made to order: the same everywhere, with a truth that follows from what is seen and heard, and nothing else that tells."
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader

from ppqg_nb import scenes
from ppqg_nb.audio import RATE, log_mel_patches
from ppqg_nb.core import BINARY_CLASSES, Clip
from ppqg_nb.data import collate
from ppqg_nb.scenes import CLASSES, KINDS, SHAPES, Draws, Scenes, SceneStream, cast, directed, dubs, pair, scene, sound

PLAIN = KINDS[:4]
GOLDEN = dict(single='5db184c476e11759', multi='c7df11c8b729eb61', semantic='b1c85d308c107a77', null='dfefa8edc9ebdb21')


def digest(*many):
    parts = (x.numpy().tobytes() for s in many for x in (s.frames, s.objects, s.labels, s.waveform))
    return sha256(b''.join(parts)).hexdigest()[:16]


def some(kind, n=6, **kw): return [scene(11, i, kind, **kw) for i in range(n)]


@pytest.mark.parametrize('kind', PLAIN)
def test_scene_is_what_it_was_when_this_was_written(kind):
    "The hash of ten scenes: whoever changes it changes every score that was ever taken on scenes."
    assert digest(*some(kind, 10)) == GOLDEN[kind]


@pytest.mark.parametrize('kind', KINDS)
def test_scene_depends_on_its_numbers_only(kind):
    one = scene(3, 4, kind, 64, 3)
    np.random.seed(1); torch.manual_seed(1)
    scene(3, 5, kind, 64, 3)
    assert digest(scene(3, 4, kind, 64, 3)) == digest(one)
    others = [scene(4, 4, kind, 64, 3), scene(3, 5, kind, 64, 3)]
    assert len({digest(s) for s in (one, *others)}) == 3


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_workers_change_nothing(workers):
    data = Scenes(5, 'mixed', size=32, steps=2, length=6, dubs=2)
    loaded = [s for part in DataLoader(data, 4, collate_fn=list, num_workers=workers) for s in part]
    assert digest(*loaded) == digest(*data) and [s.name for s in loaded] == [e.name for e in data.entries]


def test_raw_numbers_are_kept_apart():
    "Seed, index, stream and dub each lead to other numbers, and so do the largest that there are."
    words = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (2**63 - 1, 2**63 - 1, 9, 2**31)]
    assert len({x for w in words for x in Draws(*w).uniform(500).tolist()}) == 500 * len(words)


@pytest.mark.parametrize('kind', PLAIN)
def test_scene_is_a_clip(kind):
    for s in some(kind, 3, size=48, steps=4):
        assert isinstance(s, Clip) and s.rate == RATE and s.annotated.tolist() == [True] * 4
        assert s.frames.shape == (4, 3, 48, 48) and s.frames.dtype == torch.uint8
        assert s.labels.shape == s.objects.shape == (4, 48, 48) and s.labels.dtype == s.objects.dtype == torch.int64
        assert s.waveform.shape == (4 * RATE,) and s.waveform.dtype == torch.float32
        assert torch.equal(s.patches, log_mel_patches(s.waveform, RATE, 4, 1.))
        assert s.sounding.shape == (4, len(CLASSES)) and not s.sounding[:, 0].any()


def test_pairs_have_one_picture_and_two_answers():
    for i in range(30):
        a, b = pair(2, i, 64, 2)
        assert a.frames is b.frames and torch.equal(a.objects, b.objects) and not torch.equal(a.waveform, b.waveform)
        assert a.labels.flatten(1).any(1).all() and b.labels.flatten(1).any(1).all()
        assert not ((a.labels > 0) & (b.labels > 0)).any()
        assert digest(a, b) == digest(*(scene(2, i, 'single', 64, 2, dub) for dub in (0, 1)))


@pytest.mark.parametrize('kind', KINDS)
def test_dub_can_be_made_alone(kind):
    many = dubs(7, 3, kind, 4, 32, 2)
    assert [digest(s) for s in many] == [digest(scene(7, 3, kind, 32, 2, dub)) for dub in range(4)]
    assert digest(*dubs(7, 3, kind, 2, 32, 2, dub=2)) == digest(*many[2:])


def test_single_dubs_go_round_all_objects():
    for i in range(10):
        n = len(scene(0, i, 'single', 32, 1).cast.classes)
        heard = [s.sounding[0].nonzero().item() for s in dubs(0, i, 'single', n, 32, 1)]
        assert sorted(heard) == sorted(scene(0, i, 'single', 32, 1).cast.classes)


def test_null_scenes_are_empty():
    found = some('null', 40, size=32, steps=2)
    assert not any(s.labels.any() for s in found)
    silent = [not s.waveform.any() for s in found]
    assert 10 < sum(silent) < 30
    for s in found: assert not set(s.sounding.any(0).nonzero()[:, 0].tolist()) & set(s.objects.unique().tolist())


def test_mixed_sets_have_a_tenth_of_null_scenes():
    kinds = [scenes.plain_kind(3, i, 'mixed') for i in range(3000)]
    assert .085 < kinds.count('null') / 3000 < .115
    assert .42 < kinds.count('single') / 3000 < .48 and set(kinds) == {'null', 'single', 'multi'}
    i = kinds.index('null')
    assert digest(scene(3, i, 'mixed', 32, 1)) == digest(scene(3, i, 'null', 32, 1))


@pytest.mark.parametrize('kind, seen, heard', [('single', (2, 3, 4), (1,)), ('multi', (3, 4), (2, 3)), ('semantic', (3, 4), (2, 3))])
def test_numbers_of_objects_and_sounds(kind, seen, heard):
    parts = [directed(1, i, kind, 6)[:2] for i in range(200)]
    assert {len(who.classes) for who, _ in parts} == set(seen)
    assert {int(n) for _, v in parts for n in v.on.sum(1)} == set(heard)
    assert all(len(set(who.classes)) == len(who.classes) and v.on.sum(1).max() < len(who.classes) for who, v in parts)
    changes = np.mean([(v.on[1:] != v.on[:-1]).any(1).mean() for _, v in parts])
    assert changes == 0 if kind == 'single' else changes > .5


@pytest.mark.parametrize('kind', ['single', 'multi', 'semantic'])
def test_labels_are_the_visible_part_of_what_sounds(kind):
    for s in some(kind, 8, size=64):
        for t in range(5):
            expected = sum((s.objects[t] == c) * c for c in s.sounding[t].nonzero()[:, 0])
            assert torch.equal(s.labels[t], expected)
            assert set(s.sounding[t].nonzero()[:, 0].tolist()) <= set(s.objects[t].unique().tolist())


def test_later_objects_hide_earlier():
    scenery = np.full((3, 96, 96), .5, np.float32)
    hidden = 0
    for i in range(12):
        who = cast(Draws(4, i), 4, 2)
        objects = scenes.paint(who, scenery)[1]
        alone = [scenes.paint(replace(who, classes=who.classes[[k]], radius=who.radius[[k]], places=who.places[:, [k]],
                                      turns=who.turns[:, [k]], colours=who.colours[[k]]), scenery)[1] for k in range(4)]
        expected = np.zeros_like(objects)
        for one in alone: expected = np.where(one > 0, one, expected)
        assert (objects == expected).all()
        hidden += sum((one > 0).sum() for one in alone) - (objects > 0).sum()
    assert hidden > 100


def test_every_object_stays_visible():
    "At least an eighth of its area, in each second of many scenes, and nearly always more than half."
    shares = []
    for i in range(100):
        who = directed(6, i, 'multi', 5)[0]
        objects = scenes.paint(who, np.full((3, 64, 64), .5, np.float32))[1]
        shares += [(objects == c).sum((1, 2)) / (2 * (64 * r)**2) for c, r in zip(who.classes, who.radius)]
    assert np.min(shares) > .125 and np.quantile(shares, .02) > .5


def test_objects_differ_from_the_background():
    for s in some('multi', 8, size=64):
        bright = s.frames.float().mean(1)
        for c in s.cast.classes: assert ((bright[s.objects == c] - bright[s.objects == 0].mean()).abs() > 20).float().mean() > .8


def test_sounds_follow_the_flags():
    for s in some('multi', 10, size=32):
        alone = [sound(replace(s.voices, on=s.voices.on & (np.arange(len(s.voices.classes)) == k)),
                       directed(11, int(s.name.split('-')[2]), 'multi', 5)[3]) for k in range(len(s.voices.classes))]
        for k, x in enumerate(alone):
            power = np.square(x.reshape(5, RATE), dtype=np.float64).mean(1)
            assert (power[~s.voices.on[:, k]] == 0).all()
            assert (np.sqrt(power[s.voices.on[:, k]]) > .6 * s.voices.level[k]).all()


def test_sound_is_of_16_bits_and_never_clipped():
    loudest = 0
    for i in range(60):
        _, heard, _, draws = directed(8, i, 'multi', 2)
        x = sound(replace(heard, level=np.full(len(heard.level), .06)), draws) * 2**15
        assert (x == np.rint(x)).all()
        loudest = max(loudest, abs(x).max())
    assert 8000 < loudest < 2**15 - 1


def test_steps_that_are_silent_are_digitally_silent():
    on = np.array([[False], [True], [False]])
    for kind in range(1, 9):
        x = sound(scenes.Voices(np.array([kind]), np.array([440.]), np.array([.05]), on), Draws(0, kind)).reshape(3, RATE)
        assert not x[0].any() and not x[2].any() and .03 < np.sqrt(np.mean(x[1]**2)) < .07


def quarters(x): return np.searchsorted(np.unique(np.quantile(x, [.25, .5, .75])), x)


def p_value(a, b):
    table = stats.contingency.crosstab(a, b).count
    return stats.chi2_contingency(table).pvalue


@pytest.fixture(scope='module')
def noted():
    "One object of each of 5000 scenes with three objects: class, whether it sounds, and the rest."
    rows = []
    for i in range(10_000):
        who, heard, *_ = directed(21, i, 'multi', 3)
        if len(who.classes) != 3: continue
        k = len(rows) % 3
        rows.append([who.classes[k], heard.on[0, k], heard.on[:, k].argmax(), k, *who.places[0, k], who.radius[k], *who.colours[k].flat,
                     who.turns[0, k], who.turns[1, k] - who.turns[0, k], np.hypot(*(who.places[1, k] - who.places[0, k])),
                     heard.pitch[k], heard.level[k]])
    return np.array(rows).T


def test_class_and_sounding_are_independent_of_all_else(noted):
    kind, sounds, onset, order, *rest = noted
    for x in (onset, order, *map(quarters, rest)): assert p_value(kind, x) > 1e-4
    for x in (order, *map(quarters, rest)): assert p_value(sounds, x) > 1e-4
    assert p_value(kind, sounds) > 1e-4
    assert p_value(kind, quarters(rest[2] * (1 + .02 * kind))) < 1e-6           # a leak of 2 % in size would be seen
    assert p_value(sounds, quarters(rest[2] * (1 + .05 * sounds))) < 1e-6


def test_pitch_and_loudness_fill_the_same_range_in_every_class(noted):
    kind, pitch, level = noted[0], noted[-2], noted[-1]
    for c in range(1, 9):
        assert stats.ks_2samp(pitch[kind == c], pitch[kind != c]).pvalue > 1e-3
        assert stats.ks_2samp(level[kind == c], level[kind != c]).pvalue > 1e-3
    assert 220 <= pitch.min() and pitch.max() < 880 and .015 <= level.min() and level.max() < .06


def test_shapes_have_one_area_and_differ():
    at = np.linspace(-1.4, 1.4, 600)
    x, y = np.meshgrid(at, at)
    masks = {name: shape(x, y) <= 0 for name, shape in SHAPES.items()}
    for m in masks.values(): assert abs(m.sum() * (at[1] - at[0])**2 - 2) < .03
    for a in masks:
        for b in masks:
            if a < b and {a, b} != {'disc', 'stripes'}: assert (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum() < .87
    assert scenes.second_colour(CLASSES.index('disc'), x, y, 20.) is None
    assert .4 < scenes.second_colour(CLASSES.index('stripes'), x, y, 20.)[masks['stripes']].mean() < .6


@pytest.mark.parametrize('size, steps', [(32, 1), (50, 2), (128, 5), (200, 10)])
def test_any_size_and_length(size, steps):
    s = scene(1, 1, 'multi', size, steps)
    assert s.frames.shape == (steps, 3, size, size) and s.patches.shape == (steps, 96, 64)
    assert (s.objects > 0).any()


def test_size_is_sharpness_only():
    small, large = (scene(1, 2, 'multi', size) for size in (64, 192))
    assert torch.equal(small.waveform, large.waveform)
    assert (large.objects[:, 1::3, 1::3] == small.objects).float().mean() > .995


@pytest.mark.parametrize('task, classes', [('avss', CLASSES), ('ms3', BINARY_CLASSES), ('s4', BINARY_CLASSES)])
def test_tasks(task, classes):
    data = Scenes(1, 'single', 32, 2, 4, task=task)
    plain = scene(1, 2, 'single', 32, 2)
    assert data.classes == classes and data.task == task and len(data.entries) == len(data) == 4
    labels = plain.labels if task == 'avss' else (plain.labels > 0).long()
    assert torch.equal(data[2].labels, labels) and torch.equal(data[-2].labels, labels)
    if task == 's4': assert data[2].sounds.tolist() == [plain.labels.max() - 1]
    else: assert data[2].sounds is None
    with pytest.raises(IndexError, match='the set has 4'): data[4]


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_stream_gives_the_same_batches_for_any_number_of_workers(workers):
    stream = SceneStream(0, 'mixed', 32, 1, dubs=2, stop=11, block=2)
    loaded = [b.names for b in DataLoader(stream, 4, collate_fn=collate, num_workers=workers)]
    expected = [s.name for i in range(11) for s in dubs(0, i, 'mixed', 2, 32, 1)]
    assert [name for names in loaded for name in names] == expected


@pytest.mark.parametrize('world', [1, 2, 3])
def test_stream_goes_on_where_it_stopped_and_is_shared_out(world):
    whole = list(SceneStream(0, stop=24, block=2).indices())
    assert whole == list(range(24))
    parts = [list(SceneStream(0, start=6, stop=24, block=2, shard=(r, world)).indices(w, 2)) for r in range(world) for w in range(2)]
    assert sorted(i for p in parts for i in p) == whole[6:]


@pytest.mark.parametrize('call, sentence', [
    (lambda: scene(0, 0, 'solo'), "kind is 'solo'; it must be one of single, multi"),
    (lambda: scene(-1, 0, 'single'), 'seed is -1; it must be a whole number from 0'),
    (lambda: scene(0, 1.5, 'single'), 'index is 1.5; it must be a whole number'),
    (lambda: scene(0, 0, 'single', size=16), 'size is 16; it must be a whole number from 32'),
    (lambda: scene(0, 0, 'single', steps=0), 'steps is 0; it must be a whole number from 1'),
    (lambda: scene(0, 0, 'single', dub=-1), 'dub is -1; it must be'),
    (lambda: dubs(0, 0, 'single', True), 'n is True; it must be a whole number'),
    (lambda: Scenes(0, task='avs'), "task is 'avs'; it must be one of"),
    (lambda: Scenes(0, 'multi', task='s4'), "Task 's4' names one sound a clip"),
    (lambda: Scenes(0, length=0), 'length is 0; it must be'),
    (lambda: Scenes(0, size=8), 'size is 8; it must be'),
    (lambda: SceneStream(0, shard=(2, 2)), 'the first number of shard is 2; it must be'),
    (lambda: SceneStream(0, block=0), 'block is 0; it must be')])
def test_errors_are_sentences(call, sentence):
    with pytest.raises(ValueError) as e: call()
    assert sentence in str(e.value) and str(e.value).endswith('.')
