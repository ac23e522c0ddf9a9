"""Scenes from real photographs and recordings: the reader of their archives, the split by file, and the scenes.

The media are no part of the repository. What needs them is skipped where they are not installed; REALMIX_ROOT names a
folder into which the packages were unpacked. Everything else runs on a small made-up tree.
"""
import io
import os
import pickle
import struct
import tracemalloc
import zlib
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import PurePosixPath

import av
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch.utils.data import DataLoader

from ppqg_nb import realmix, runs
from ppqg_nb.audio import RATE, log_mel
from ppqg_nb.core import BINARY_CLASSES
from ppqg_nb.data import collate
from ppqg_nb.realmix import (CLASSES, DRAWN, SIDES, Manifest, Media, Realmix, RealmixStream, Source, able, directed,
                             dubs, manifest_path, measure, open_media, pair, playable, read_manifest, recorded,
                             recording, scene, split_in_time, varied, visible, write_manifest)
from ppqg_nb.scenes import KINDS, Draws

PLAIN = KINDS[:4]
NAMES = 'frog', 'duck', 'cow', 'dog', 'violin'
SHIPPED = read_manifest()
COPIES = {'ram', 'mountaingoat', 'goat'}, {'beaver', 'badger'}, {'camel', 'dromedary'}, {'scissors_small_open',
                                                                                        'scissors_small_closed'}


def rcc(contents, version, flags=0):
    "An archive from a nested dict: the nodes of one folder after those of another, written breadth first."
    nodes, names, data, queue = [('', contents)], b'', b'', [contents]
    first = {}
    while queue:
        folder = queue.pop(0)
        first[id(folder)] = len(nodes)
        nodes += folder.items()
        queue += [x for x in folder.values() if isinstance(x, dict)]
    tree = b''
    for name, x in nodes:
        if isinstance(x, dict): node = struct.pack('>IHII', len(names), 2, len(x), first[id(x)])
        else:
            node = struct.pack('>IHHHI', len(names), flags, 0, 1, len(data))
            x = struct.pack('>I', len(x)) + zlib.compress(x) if flags == 1 else x
            data += struct.pack('>I', len(x)) + x
        tree += node + (bytes(8) if version > 1 else b'')
        names += struct.pack('>HI', len(name), 7) + name.encode('utf-16-be')
    head = 24 if version > 2 else 20
    parts = head, head + len(tree) + len(names), head + len(tree)             # names before contents, for a change
    return struct.pack('>4s4I', b'qres', version, *parts) + bytes(head - 20) + tree + names + data


def png(rng, wide, high, cut=True):
    "A photograph: an ellipse of noise without a corner, cut out in a wide margin; or one that fills its frame."
    x = rng.integers(0, 256, (high, wide, 4), dtype=np.uint8)
    y = ((np.mgrid[:high, :wide] + .5) / [[[high]], [[wide]]] - .5) * 2.4
    x[..., 3] = 255 * ((np.hypot(*y) < 1) & (y.min(0) < .3) if cut else 1)
    out = io.BytesIO()
    Image.fromarray(x).save(out, 'PNG')
    return out.getvalue()


def ogg(x, rate, channels=1):
    "A sound as FLAC in Ogg, written by FFmpeg; it writes no Vorbis in one channel."
    out, x = io.BytesIO(), np.rint(np.clip(x, -1, 1) * 32767).astype(np.int16)
    with av.open(out, 'w', 'ogg') as f:
        s = f.add_stream('flac', rate=rate, layout=('mono', 'stereo')[channels - 1])
        frame = av.AudioFrame.from_ndarray(np.repeat(x, channels)[None], 's16', s.layout.name)
        frame.sample_rate = rate
        f.mux([packet for part in (frame, None) for packet in s.encode(part) if packet.size])
    return out.getvalue()


@pytest.fixture(scope='session')
def tree(tmp_path_factory):
    "A made-up package tree, and its manifest: photographs on disk, half of the recordings in an archive."
    root, rng, sources, packed = tmp_path_factory.mktemp('realmix'), np.random.default_rng(0), [], {}
    def put(path, data):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    for k, name in enumerate(NAMES):
        for n, side in enumerate(('train', 'train', 'test')):
            put(f'a/{name}{n}.png', png(rng, 60 + 40 * k, 140 - 10 * n))
            sources.append(Source('stamps', f'a/{name}{n}.png', 'photo', side, label=name))
        for n, side in enumerate(('train', 'test')):
            rate, seconds = (44100, 22050)[n], 1 + 2 * (k % 2) - .4 * n
            at = np.arange(int(rate * seconds))
            data = ogg(.2 * rng.standard_normal(len(at)) * (.2 + np.sin(at / 3000)**2), rate, 1 + k % 2)
            if n: put(f'a/{name}.ogg', data)
            else: packed[f'{name}.ogg'] = data
            sources.append(Source(*(('stamps', f'a/{name}.ogg') if n else ('games', 'b/all.rcc')), 'recording', side,
                                  inner='' if n else f'deep/er/{name}.ogg', label=name))
    put('b/all.rcc', rcc({'deep': {'er': packed, 'README': b'none'}}, 3))
    for n in range(6):
        put(f'a/other{n}.png', png(rng, 90, 90))
        put(f'a/place{n}.png', png(rng, 200, 130 + n, cut=False))
        side = ('train', 'test')[n % 2]
        sources += [Source('stamps', f'a/other{n}.png', 'distractor', side),
                    Source('stamps', f'a/place{n}.png', 'background', side)]
    chosen = Manifest({'stamps': dict(version='1.2', licence='none'), 'games': dict(version='3', licence='none')},
                      tuple(sorted(sources, key=lambda s: s.package == 'games')))
    return root, measure(chosen, root)


@pytest.fixture(scope='session')
def media(tree): return open_media(*tree)


def digest(*many):
    parts = (x.numpy().tobytes() for s in many for x in (s.frames, s.objects, s.labels, s.waveform, s.sounding))
    return sha256(b''.join(parts)).hexdigest()


# The archives

@pytest.mark.parametrize('version', [1, 2, 3])
@pytest.mark.parametrize('flags', [0, 1])
def test_archive_is_read_back(version, flags):
    data = rcc({'a': {'b': {'x.ogg': b'one' * 9, 'ü.png': b''}, 'y': b'two'}, 'z': bytes(range(256))}, version, flags)
    read = {path: realmix.rcc_read(data, e) for path, e in realmix.rcc_files(data).items()}
    assert read == {'a/b/x.ogg': b'one' * 9, 'a/b/ü.png': b'', 'a/y': b'two', 'z': bytes(range(256))}


def test_what_is_packed_with_zstd_is_said():
    data = rcc({'x': b'one'}, 3, 4)
    with pytest.raises(ValueError, match='packed with zstd, which is not supported; only zlib is'):
        realmix.rcc_read(data, realmix.rcc_files(data)['x'])


@pytest.mark.parametrize('flags', [0, 1])
def test_damaged_archive_is_read_or_refused(flags):
    "Cut off anywhere, or with any byte changed: a dict of bytes or one sentence, no other error, and no endless loop."
    data, rng = rcc({'a': {'x': b'one' * 9}, 'y': b'two'}, 3, flags), np.random.default_rng(0)
    changed = [bytes([*data[:i], rng.integers(256), *data[i + 1:]]) for i in range(len(data))]
    refused = 0
    for bad in [data[:i] for i in range(len(data))] + changed:
        try: assert all(isinstance(realmix.rcc_read(bad, e), bytes) for e in realmix.rcc_files(bad).values())
        except ValueError as e:
            refused += 1
            assert 'install its package anew' in str(e) or 'zstd' in str(e)
    assert refused > len(data)


def test_folders_that_hold_each_other_cost_nothing():
    "Six hundred nodes, each a folder that holds all others: refused before there is a list of 600 × 600."
    tree = struct.pack('>IHIIQ', 0, 2, 599, 1, 0) * 600
    names = struct.pack('>HI', 1, 0) + 'x'.encode('utf-16-be')
    data = struct.pack('>4s5I', b'qres', 3, 24, 24, 24 + len(tree), 0) + tree + names
    tracemalloc.start()
    with pytest.raises(ValueError, match='no Qt resource archive'): realmix.rcc_files(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 2**20


# The manifest that ships

def test_manifest_is_small_and_names_each_file_once():
    assert os.path.getsize(manifest_path()) < 60_000
    for of in (lambda s: s.name, lambda s: s.sha256): assert max(Counter(map(of, SHIPPED.sources)).values()) == 1
    for s in SHIPPED.sources:
        assert s.package in SHIPPED.packages and s.side in ('train', 'test') and len(s.sha256) == 64
        assert s.role in ('photo', 'recording', 'background', 'distractor')
        assert (s.label in CLASSES[1:]) == (s.role in ('photo', 'recording'))
        assert not PurePosixPath(s.path).is_absolute() and '..' not in s.path


def test_manifest_has_every_class_on_the_training_side():
    for role in ('photo', 'recording'):
        assert {s.label for s in SHIPPED.sources if (s.role, s.side) == (role, 'train')} == set(CLASSES[1:])
    assert [len(able(Media('/', SHIPPED), side)) for side in SIDES] == [23, 23, 13, 14]


def test_manifest_avoids_what_must_not_be_used():
    "Speech, drawings, silent recordings, and the one file with a licence that forbids it."
    stems = {PurePosixPath(s.name).stem for s in SHIPPED.sources if s.role == 'recording'}
    assert not any('_desc' in s.name or 'cartoon' in s.name for s in SHIPPED.sources)
    assert not stems & {'giraffe', 'wombat', 'iguana', 'nandou', 'drum_kit'}


def test_known_copies_are_on_one_side():
    for group in COPIES:
        sides = {s.side for s in SHIPPED.sources if s.role == 'recording' and PurePosixPath(s.name).stem in group}
        assert len(sides) <= 1


def test_parts_share_no_sample():
    for s in SHIPPED.sources:
        if s.role != 'recording': continue
        (a, b), (c, d) = s.parts
        assert 0 <= a < b and b + RATE // 100 <= c < d <= s.seconds * RATE + 160
        assert b - a >= RATE // 10 and d - c >= RATE // 20


def test_manifest_survives_writing(tmp_path):
    write_manifest(SHIPPED, tmp_path / 'x.json')
    assert read_manifest(tmp_path / 'x.json') == SHIPPED and [p.name for p in tmp_path.iterdir()] == ['x.json']
    assert (tmp_path / 'x.json').read_bytes() == manifest_path().read_bytes()


def test_scenes_are_what_they_were_when_this_was_written():
    "Who is on screen and what is heard, of 40 scenes of each side: whoever changes it changes every score ever taken."
    real, told = Media('/', SHIPPED), sha256()
    for side in SIDES:
        for i in range(40):
            who, heard = directed(real, 11, i, PLAIN[i % 4], 3, i % 3, side)
            for x in (who.photos, who.classes, who.longer, who.places, who.mirrored, who.light, who.crop, heard.classes,
                      heard.recordings, heard.level, heard.at, heard.on): told.update(np.asarray(x, float).tobytes())
    assert told.hexdigest()[:16] == 'ec9d9e50ecaa18e2'


def test_nothing_but_shape_and_sound_tells():
    real = Media('/', SHIPPED)
    rows = []
    for index in range(2500):
        who, heard = directed(real, 5, index, 'single', 1)
        mine = np.flatnonzero(who.classes)
        i = mine[index % len(mine)]
        rows.append((who.classes[i], who.longer[i], *who.places[0, i], who.light[i], i, heard.classes[0], heard.level[0]))
    kind, *rest, heard, level = np.array(rows).T
    for k, x in [(kind, x) for x in rest] + [(heard, level)]:
        cut = np.searchsorted(np.quantile(x, [.25, .5, .75]), x)
        table = np.stack([np.bincount(cut[k == c], minlength=4) for c in np.unique(k)])
        assert stats.chi2_contingency(table[:, table.any(0)]).pvalue > 1e-3
    for k in (kind, heard): assert stats.chisquare(np.bincount(k.astype(int))[1:]).pvalue > 1e-3


# Photographs and recordings

def test_cut_out_ends_where_something_is_seen(media, tree):
    for i, s in enumerate(media.manifest.sources):
        if s.role not in ('photo', 'distractor'): continue
        x = realmix.photo(media, i)
        for edge in (x[0], x[-1], x[:, 0], x[:, -1]): assert edge[..., 3].max() > 25
        with Image.open(tree[0] / s.path) as whole: assert s.size < whole.size and s.size == x.shape[1::-1]


def test_recording_is_mono_at_16_khz():
    t = np.arange(44100) / 44100
    for rate, channels in ((44100, 2), (22050, 1)):
        x = recorded(ogg(.3 * np.sin(2 * np.pi * 1000 * t[:rate] * 44100 / rate), rate, channels))
        assert x.dtype == np.float32 and abs(len(x) - RATE) < 200
        assert abs(np.abs(np.fft.rfft(x[:15000])).argmax() * RATE / 15000 - 1000) < 2
        assert abs(np.sqrt(np.mean(x[2000:14000]**2)) - .3 / 2**.5) < .02


@pytest.mark.parametrize('n', [700, 5000, RATE, 7 * RATE])
def test_split_gives_both_parts_something_to_hear(n):
    rng = np.random.default_rng(n)
    x = rng.standard_normal(n).astype(np.float32)
    x = np.concatenate([np.zeros(3000, np.float32), x, np.zeros(9000, np.float32)])
    (a, b), (c, d) = split_in_time(x)
    assert 2600 < a < b < c < d < 3400 + n and c - b >= RATE // 100
    for part in (x[a:b], x[c:d]): assert np.abs(part).max() > .5


def test_split_of_silence_is_refused():
    with pytest.raises(ValueError, match='Less than two frames of 20 ms can be heard'):
        split_in_time(np.zeros(RATE, np.float32))


def test_windows_keep_to_their_part(media):
    "Number the samples of each recording: no number is heard both in training and in tier 1, and all of them are loud."
    compared = 0
    for i, s in enumerate(media.manifest.sources):
        if s.role != 'recording' or s.side != 'train': continue
        numbered = Media('/', media.manifest)
        numbered.kept['recording', i] = np.arange(1, len(recording(media, i)) + 1, dtype=np.float32)
        heard = {}
        for side in ('train', 'test1'):
            x, starts = playable(numbered, i, side)
            assert len(starts) and starts[-1] + RATE <= len(x)
            a, b = s.parts[side != 'train']
            if b - a >= RATE: heard[side] = set(np.concatenate([x[k:k + RATE] for k in starts[[0, -1]]]))
            assert x.max() <= b
        if len(heard) == 2:
            assert not heard['train'] & heard['test1']
            compared += 1
    assert compared == 2


def test_seconds_begin_where_there_is_sound():
    "Of a recording with a pause, no second is taken that lies in the pause, and any other may be."
    x = np.random.default_rng(0).standard_normal(8 * RATE).astype(np.float32)
    x[3 * RATE:5 * RATE] *= .01
    starts = realmix.loud_starts(x)
    level = np.array([x[s:s + RATE].std() for s in range(0, len(x) - RATE + 1, RATE // 100)])
    assert {*starts} >= {*np.flatnonzero(level > .4) * (RATE // 100)}
    assert not {*starts} & {*np.flatnonzero(level < .3) * (RATE // 100)}


def test_parts_with_a_pause_are_never_quiet(media):
    i = media.groups['recording', 'train', 'frog'][0]
    paused = Media('/', replace(media.manifest, sources=tuple(
        replace(s, parts=((0, 6 * RATE), (7 * RATE, 8 * RATE))) for s in media.manifest.sources)))
    x = np.random.default_rng(0).standard_normal(8 * RATE).astype(np.float32)
    x[2 * RATE:4 * RATE] *= .01
    paused.kept['recording', i] = x
    part, starts = playable(paused, i, 'train')
    assert len(starts) > 100 and min(part[s:s + RATE].std() for s in starts) > .3


# Opening

def test_missing_and_changed_files_are_named(tree, tmp_path):
    root, manifest = tree
    with pytest.raises(FileNotFoundError, match=r'frog0\.png cannot be read; use apt install tuxpaint-stamps-default'):
        open_media(tmp_path, manifest)
    for s in manifest.sources:
        (tmp_path / s.path).parent.mkdir(exist_ok=True)
        (tmp_path / s.path).write_bytes((root / s.path).read_bytes())
    assert open_media(tmp_path, manifest).manifest is manifest
    (tmp_path / 'a/cow1.png').write_bytes(b'another')
    with pytest.raises(ValueError, match=r'cow1\.png is not the file of the manifest.*from stamps 1\.2; use apt'):
        open_media(tmp_path, manifest)
    (tmp_path / 'a/cow1.png').write_bytes((root / 'a/cow1.png').read_bytes())
    (tmp_path / 'b/all.rcc').write_bytes(rcc({'deep': b''}, 3))
    with pytest.raises(FileNotFoundError, match=r'all\.rcc holds no file deep/er/frog\.ogg; use apt'):
        open_media(tmp_path, manifest)
    for broken in (b'', b'qres', b'no archive'):
        (tmp_path / 'b/all.rcc').write_bytes(broken)
        with pytest.raises(ValueError, match=r'all\.rcc:deep/er/frog\.ogg: This is no Qt resource archive'):
            open_media(tmp_path, manifest)


# Scenes

@pytest.mark.parametrize('side', SIDES)
@pytest.mark.parametrize('kind', PLAIN)
def test_scene_is_made_from_its_side(media, kind, side):
    "Photographs, recordings, backgrounds and distractors from the files of that side, and no class twice."
    seen, heard_side = DRAWN[side]
    apart = 'train' if side == 'train' else 'test'
    files = media.manifest.sources
    for i in range(12):
        who, heard = directed(media, 1, i, kind, 3, i, side)
        for n, c in zip(who.photos, who.classes):
            s = files[n]
            assert (s.role, s.side, s.label) == (('photo', seen, CLASSES[c]) if c else ('distractor', apart, ''))
        for n, c in zip(heard.recordings, heard.classes):
            assert (files[n].role, files[n].side, files[n].label) == ('recording', heard_side, CLASSES[c])
        assert (files[who.scenery].role, files[who.scenery].side) == ('background', apart)
        mine = who.classes[who.classes > 0]
        assert len({*mine}) == len(mine) and len(who.classes) - len(mine) <= 1 and len(who.classes) <= 4
        counts = heard.on.sum(1)
        if kind == 'single': assert set(counts) == {1} and heard.classes[0] in mine
        elif kind == 'null': assert not {*heard.classes} & {*mine} and len(heard.classes) <= 2
        else: assert set(heard.classes) == set(mine) and set(counts) <= {2, 3} and max(counts) < len(mine)


@pytest.mark.parametrize('kind', KINDS)
def test_scene_depends_on_its_numbers_and_side_only(media, tree, kind):
    one = scene(media, 3, 4, kind, 64, 2)
    np.random.seed(1); torch.manual_seed(1)
    scene(media, 3, 5, kind, 64, 2)
    assert digest(scene(open_media(*tree), 3, 4, kind, 64, 2)) == digest(one)
    assert digest(scene(pickle.loads(pickle.dumps(media)), 3, 4, kind, 64, 2)) == digest(one)
    others = [scene(media, 4, 4, kind, 64, 2), scene(media, 3, 5, kind, 64, 2),
              *(scene(media, 3, 4, kind, 64, 2, side=side) for side in SIDES[1:])]
    assert len({digest(s) for s in (one, *others)}) == 6


@pytest.mark.parametrize('kind', PLAIN)
def test_truth_is_what_sounds_and_is_seen(media, kind):
    for i in range(6):
        a, b = dubs(media, 2, i, kind, 2, 64, 3)
        assert a.frames is b.frames and a.objects is b.objects
        for s in (a, b):
            assert s.frames.shape == (3, 3, 64, 64) and s.frames.dtype == torch.uint8 and s.labels.dtype == torch.int64
            assert s.waveform.shape == (3 * RATE,) and s.patches.shape == (3, 96, 64) and s.sounding.shape == (3, 24)
            for t in range(3):
                loud = s.sounding[t].nonzero()[:, 0]
                assert torch.equal(s.labels[t], torch.where(torch.isin(s.objects[t], loud), s.objects[t], 0))
            silent = ~s.sounding.any(1)
            assert (s.waveform.view(3, RATE).abs().amax(1) == 0).equal(silent)
        if kind == 'single': assert not ((a.labels > 0) & (b.labels > 0)).any() and a.labels.any() and b.labels.any()


def test_mirror_and_light(media):
    "A mirrored object is mirrored with its alpha, and light neither runs over nor depends on the rest."
    who, _ = directed(media, 6, 0, 'multi', 1)
    n = len(who.classes)
    def sprite(mirrored, light): return realmix.sprite(
        media, replace(who, mirrored=np.full(n + 1, mirrored), light=np.full(n + 1, light)), 0, 256)
    (colour, alpha), (flipped, mask), (bright, _) = sprite(False, 1.), sprite(True, 1.), sprite(False, 1.5)
    assert (alpha[:, ::-1] == mask).all() and (colour[..., ::-1] == flipped).all() and (alpha != mask).any()
    assert (bright == np.rint(np.minimum(colour * 1.5, 255))).all() and bright.max() == 255


def test_front_hides_and_distractors_leave_nothing(media):
    "Take the front object away: what changes is where it was, and what it hid comes back."
    hid = 0
    for i in range(20):
        who, _ = directed(media, 6, i, 'multi', 1)
        less = replace(who, photos=who.photos[:-1], classes=who.classes[:-1], longer=who.longer[:-1],
                       places=who.places[:, :-1], mirrored=np.delete(who.mirrored, -2), light=np.delete(who.light, -2))
        (_, all_of), (_, rest) = realmix.paint(media, who, 96), realmix.paint(media, less, 96)
        changed = all_of != rest
        assert (all_of[changed] == who.classes[-1]).all()
        hid += (rest[changed] > 0).sum()
    assert hid > 100


@pytest.mark.parametrize('shape', ((90, 40), (7, 160), (200, 200)))
def test_a_varied_photograph_is_one_still(shape):
    "Whatever is drawn, something is left to see, tightly cropped, no more than so much is lost, and nothing changes at 0."
    x = np.full((*shape, 4), 255, np.uint8)
    x[..., :3] = np.random.default_rng(0).integers(0, 256, (*shape, 3))
    seen = set()
    for i in range(60):
        y = varied(x, Draws(5, i))
        assert np.array_equal(y, varied(x, Draws(5, i))) and y.dtype == np.uint8 and y.shape[2] == 4
        assert np.array_equal(y, visible(y)) and .5 < (y[..., 3] > 127).sum() / x[..., 3].size < 1.15
        seen.add(y.tobytes())
    assert len(seen) == 60
    assert np.abs(varied(x, Draws(5, 0), 0.).astype(int) - x).max() <= 8       # hue in 8 bits, and back


def test_a_varied_scene_has_the_same_cast_and_sound(media):
    "Other pictures, and the truth of these; all that is drawn besides stays, and dubs share their frames."
    plain, other = (dubs(media, 3, 8, 'multi', 2, 96, 2, vary=vary) for vary in (0., 1.))
    assert digest(*dubs(media, 3, 8, 'multi', 2, 96, 2)) == digest(*plain)
    assert digest(*dubs(media, 3, 8, 'multi', 2, 96, 2, vary=1.)) == digest(*other) and other[0].frames is other[1].frames
    for a, b in zip(plain, other):
        assert not torch.equal(a.frames, b.frames) and torch.equal(a.waveform, b.waveform) and a.name == b.name
        assert a.objects.unique().tolist() == b.objects.unique().tolist() and not torch.equal(a.objects, b.objects)
        assert torch.equal(b.labels, b.objects.where(b.sounding[torch.arange(2)[:, None, None], b.objects], 0))
    for vary in (-.1, 1.5):
        with pytest.raises(ValueError, match=f'vary is {vary}; it must be from 0 to 1'): dubs(media, 3, 8, 'multi', vary=vary)


def test_a_recipe_varies(media, monkeypatch):
    "What a recipe says reaches the scenes of training and not those of validation."
    monkeypatch.setattr(runs, 'media_of', lambda spec: media)
    recipe = runs.Recipe(data=('realmix',), vary=.7, clips=2)
    config = runs.config_of(recipe)
    learned = runs.open_source('realmix', recipe, config)(0)
    wanted = dubs(media, runs.TRAIN_SEED, 0, 'mixed', recipe.dubs, config.image_size, 1, vary=.7)
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(learned, wanted))
    asked = runs.open_validation('realmix', recipe, config)[0]
    assert torch.equal(asked.frames, scene(media, runs.VALIDATION_SEED, 0, 'mixed', config.image_size, 1).frames)


def test_every_second_has_the_level_that_was_drawn(media):
    for side in SIDES:
        for i in range(5):
            s = scene(media, 8, i, 'single', 32, 3, side=side)
            level = s.waveform.double().view(3, RATE).square().mean(1).sqrt()
            assert torch.allclose(level, torch.full_like(level, s.voices.level[0]), rtol=.02)
            assert .015 <= s.voices.level[0] < .06


@pytest.mark.parametrize('workers', [0, 2])
def test_workers_change_nothing(media, workers):
    data = Realmix(media, 5, size=32, steps=2, length=5, dubs=2, side='test3')
    loaded = [s for part in DataLoader(data, 4, collate_fn=list, num_workers=workers) for s in part]
    assert digest(*loaded) == digest(*data) and [s.name for s in loaded] == [e.name for e in data.entries]
    assert len(set(s.name for s in loaded)) == 10


def test_sets_have_tasks_splits_and_classes(media):
    data = Realmix(media, 5, 'single', 32, 1, 2, task='s4', side='test1')
    assert (data.split, data.classes, len(data)) == ('test1, seed 5', BINARY_CLASSES, 2)
    assert data[0].labels.max() == 1 and torch.equal(data[-1].sounds + 1, data[-1].sounding[0].nonzero()[:, 0])
    assert Realmix(media, 5).classes == CLASSES
    with pytest.raises(IndexError, match='There is no scene 2; the set has 2'): data[2]
    with pytest.raises(ValueError, match="side is 'test'; it must be one of train, test1, test2, test3"):
        Realmix(media, 5, side='test')
    with pytest.raises(ValueError, match='media is of type NoneType; it must come from open_media'):
        RealmixStream(None, 5)


def test_stream_is_the_same_for_any_number_of_workers(media):
    stream = RealmixStream(media, 2, 'multi', 32, 1, dubs=2, side='train', start=4, stop=10, block=3)
    names = [[b.names for b in DataLoader(stream, 6, collate_fn=collate, num_workers=n)] for n in (0, 2)]
    assert names[0] == names[1] and len({x for part in names[0] for x in part}) == 12


def test_too_few_classes_are_said(media):
    few = replace(media.manifest, sources=tuple(s for s in media.manifest.sources if s.label in ('', 'cow', 'dog')))
    with pytest.raises(ValueError, match="Side 'train' has media of 2 classes and 3 backgrounds; scenes of kind 'multi' need 4"):
        scene(Media(media.root, few), 0, 0, 'multi')


# The real media

@pytest.fixture(scope='session')
def real():
    root = os.environ.get('REALMIX_ROOT', '/')
    try: return open_media(root)
    except FileNotFoundError: pytest.skip('the packages are not installed, and REALMIX_ROOT names no folder with them')


def test_manifest_is_what_is_measured(real):
    assert measure(SHIPPED, real.root) == SHIPPED


def test_no_recording_has_a_copy_on_the_other_side(real):
    "By mean and deviation of its log-mel bands: a known copy is nearer than 1, everything else further than 3.2."
    numbers = [i for i, s in enumerate(SHIPPED.sources) if s.role == 'recording']
    mels = [log_mel(torch.from_numpy(recording(real, i))) for i in numbers]
    sign = torch.stack([torch.cat([m.mean(0), m.std(0, unbiased=False)]) for m in mels])
    test = torch.tensor([SHIPPED.sources[i].side == 'test' for i in numbers])
    assert torch.cdist(sign[test], sign[~test]).min() > 3.2


def test_no_photograph_has_a_copy_on_the_other_side(real):
    "By correlation at 16 × 16, also of the mirror image: a copy has 1, the most alike pyramids 0.81."
    def small(i, step):
        x = realmix.cut_out(real.data(i))[:, ::step]
        alpha = x[..., 3:] / 255
        x = np.asarray(Image.fromarray((x[..., :3] * alpha + 128 * (1 - alpha)).astype(np.uint8)).resize((16, 16)), float)
        return (x - x.mean()).ravel() / np.linalg.norm(x - x.mean())
    sides = {side: [i for i, s in enumerate(SHIPPED.sources) if s.role != 'recording' and s.side == side]
             for side in ('train', 'test')}
    test = np.stack([small(i, 1) for i in sides['test']])
    for step in (1, -1): assert (test @ np.stack([small(i, step) for i in sides['train']]).T).max() < .9


@pytest.mark.parametrize('side', SIDES)
def test_real_scenes_are_seen_and_heard(real, side):
    "Nearly every sounding object has pixels, every second that sounds has its level, and every recording can be played."
    hidden = 0
    for i in range(20):
        s = scene(real, 1, i, 'single', 96, 2, side=side)
        hidden += sum(not labels.any() for labels in s.labels)
        level = s.waveform.double().view(2, RATE).square().mean(1).sqrt()
        assert torch.allclose(level, torch.full_like(level, s.voices.level[0]), rtol=.05)
    assert hidden <= 1
    for c in able(real, side):
        for i in real.groups['recording', DRAWN[side][1], CLASSES[c]]: assert len(playable(real, i, side)[1])
    a, b = pair(real, 0, 0, side=side)
    assert not (a.sounding & b.sounding).any() and not ((a.labels > 0) & (b.labels > 0)).any()
