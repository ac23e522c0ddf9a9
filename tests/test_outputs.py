"Every output is read by a library that is not ours, and says what the steps said; or there is no output."
import csv
import html
import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace

import av
import imageio_ffmpeg
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import webvtt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from clips import SECONDS, noise, save
from ppqg_nb import outputs
from ppqg_nb.outputs import (MOST, SUFFIXES, Coco, Csv, Cues, CutOut, Lines, Outputs, Overlay, Parquet, Sheet, Soft, as_json,
                             check_outputs, kind_of, segment_into, soft, timestamp)
from ppqg_nb.segmenter import Segmenter, Step, describe
from ppqg_nb.video import probe, read_frames, read_sound
from test_segmenter import Fake, clip

NAMES = ('background', 'a,b; "c"', 'ü\u2028 <b>&amp;</b>', "=cmd|' -->", '日本語 🔔')
slow = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def step(time, labels, frame=None, seed=0):
    "A step of a label map; its maps agree with it, and are large where it says so."
    low = torch.rand(len(NAMES), 1, 1, generator=torch.Generator().manual_seed(seed)) * .4
    maps = low.expand(-1, *labels.shape).clone()
    maps.scatter_(0, labels[None].long(), .9)
    objects = [describe(labels == k, maps[k], k, NAMES[k]) for k in range(1, len(NAMES))]
    frame = torch.zeros(3, *labels.shape, dtype=torch.uint8) if frame is None else frame
    return Step(time, frame, maps, labels, tuple(sorted(filter(None, objects), key=lambda o: -o.area)))


def marks(*classes, size=(12, 16)):
    "A label map in which these classes lie side by side."
    labels = torch.zeros(size, dtype=torch.uint8)
    for n, k in enumerate(classes): labels[2:7, 3 * n:3 * n + 3] = k
    return labels


def write(output, steps):
    with output:
        for s in steps: output.write(s)
    return output


def film_steps(source, hold=2):
    "Steps of a film's frames with a disc that moves; only every second one is a look."
    steps = []
    for n, f in enumerate(read_frames(source)):
        y, x = np.indices(f.image.shape[1:])
        labels = torch.from_numpy(np.uint8((x - 8 - n)**2 + (y - 12)**2 < 60))
        if n % hold: steps.append(replace(steps[-1], time=f.time, frame=f.image))
        else: steps.append(step(f.time, labels if n else 0 * labels, f.image, n))
    return steps


def packets(path):
    with av.open(str(path)) as media: return [bytes(p) for p in media.demux(audio=0) if p.size]


def ffmpeg(path, channels=4):
    "The frames of a film as the ffmpeg program decodes them, (T, H, W, channels) uint8."
    with av.open(str(path)) as media: height, width = media.streams.video[0].height, media.streams.video[0].width
    decoder = ['-c:v', 'libvpx-vp9'] if path.suffix == '.webm' else []      # the other one for VP9 leaves alpha out
    done = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), '-v', 'error', *decoder, '-i', str(path), '-an', '-fps_mode',
        'passthrough', '-f', 'rawvideo', '-pix_fmt', 'rgba' if channels == 4 else 'rgb24', '-'], capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, channels)


def coco(path):
    with redirect_stdout(io.StringIO()): return COCO(str(path))


def read_csv(path):
    with open(path, encoding='utf-8', newline='') as f: return list(csv.DictReader(f))


def read_cues(path):
    "Start and end in seconds, and names, of each cue."
    def seconds(t): return round(t.hours * 3600 + t.minutes * 60 + t.seconds + t.milliseconds / 1000, 3)
    return [(seconds(c.start_time), seconds(c.end_time), [html.unescape(x) for x in c.raw_text.split('\n')]) for c in webvtt.read(str(path))]


@pytest.fixture
def source(tmp_path): return clip(tmp_path/'source.mp4')


def listing(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def everything(folder): return {kind: folder/f'{kind}{s[0] if s else ""}' for kind, s in SUFFIXES.items()}


def test_all_at_once(source, tmp_path):
    (out := tmp_path/'out').mkdir()
    steps, text = film_steps(source), io.StringIO()
    write(Outputs(everything(out) | dict(lines=text), source, NAMES), steps)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in everything(out).values())
    looks = steps[::2]
    assert [json.loads(line) for line in text.getvalue().splitlines()] == [as_json(s) for s in looks]
    assert len(read_csv(out/'csv.csv')) == len(pq.read_table(out/'parquet.parquet')) == sum(len(s.objects) for s in looks) == 4
    for folder in ('labels', 'soft'): assert sorted(p.name for p in (out/folder).iterdir()) == [f'{n:06}.png' for n in range(10)]
    for n, s in enumerate(steps):
        with Image.open(out/'labels'/f'{n:06}.png') as x: assert np.array_equal(x, s.labels)
    read = coco(out/'coco.json')
    assert [(i['id'], i['file_name']) for i in read.loadImgs(read.getImgIds())] == [(n, f'{n:06}.png') for n in range(0, 10, 2)]
    assert read_cues(out/'cues.vtt') == [(looks[1].time, probe(source).duration, [NAMES[1]])]
    assert webvtt.read(str(out/'cues.vtt'))[0].start == timestamp(looks[1].time)
    assert len(ffmpeg(out/'overlay.mp4', 3)) == len(ffmpeg(out/'cutout.webm')) == 10


@pytest.mark.parametrize('suffix, codecs', [('.mp4', ('libx264', 'aac')), ('.webm', ('libx264', 'aac')), ('.webm', ('libvpx-vp9', 'libopus'))])
def test_a_part_of_a_film(tmp_path, suffix, codecs):
    "Films begin at 0 with their own sound, copied or encoded; all else keeps the times of the whole."
    source = save(tmp_path/('a.mp4' if codecs[1] == 'aac' else 'a.webm'), wave=noise(48000), rate=48000, codecs=codecs)
    out = {kind: tmp_path/f'{kind}{s}' for kind, s in dict(overlay=suffix, cutout='.webm', csv='.csv', cues='.vtt').items()}
    whole, text = list(Segmenter(Fake()).stream(source, 5, hold='last')), io.StringIO()
    assert segment_into(out | dict(lines=text), Segmenter(Fake()), source, 5, start=1.01, end=2.) == 24
    inside = [s for s in whole if 1.01 <= s.time < 2]
    for kind in ('overlay', 'cutout'):
        assert np.allclose([f.time for f in read_frames(out[kind])], [s.time - inside[0].time for s in inside], atol=.001)
        (x, r), (y, q) = read_sound(source), read_sound(out[kind])
        assert r == q and abs(len(y) / q - 2 + inside[0].time) < .05
        if codecs[1] == 'aac' and suffix == '.mp4' and kind == 'overlay': assert set(packets(out[kind])) < set(packets(source))
        shared, part = y[q // 10:q // 2], x[round(inside[0].time * r):]
        shift = np.correlate(part[:r // 2 + q // 10], shared, 'valid').argmax() - q // 10
        assert abs(shift) < .002 * q
    times = [json.loads(line)['time'] for line in text.getvalue().splitlines()]
    looks = [s.time for n, s in enumerate(whole) if s.time >= .99 and s.time < 2 and (n == 0 or s.maps is not whole[n - 1].maps)]
    assert times[1:] == [round(t, 6) for t in looks if t >= 1.01] and times[0] == round(inside[0].time, 6)
    assert all(1.01 <= a and b <= 2 for a, b, _ in read_cues(out['cues']))


@pytest.mark.parametrize('suffix', ['.webm', '.mov'])
def test_alpha_is_there_and_what_was_written(source, tmp_path, suffix):
    steps = film_steps(source)
    write(CutOut(path := tmp_path/f'cut{suffix}', source), steps)
    read = ffmpeg(path)
    off = read[..., 3] - 255 * torch.stack([soft(s) for s in steps]).numpy()
    assert np.abs(off).mean() < 3 and np.abs(off).max() < 64
    assert np.abs(read[..., :3] - torch.stack([s.frame for s in steps]).permute(0, 2, 3, 1).numpy().astype(float)).mean() < 6
    assert read[4:, 12, 12:14, 3].min() > 120 and read[:, 40:, 50:, 3].max() < 100
    with av.open(str(path)) as media:
        assert np.allclose([float(p.pts * p.time_base) for p in media.demux(video=0) if p.size], [s.time for s in steps], atol=.001)


@pytest.mark.parametrize('kind, suffix', [(Overlay, '.mp4'), (Overlay, '.webm'), (CutOut, '.webm'), (CutOut, '.mov')])
def test_odd_sizes_grow_by_one(tmp_path, kind, suffix):
    source = clip(tmp_path/'odd.mkv', (0, .1, .2), (65, 49), codecs=('ffv1', 'flac'), pix_fmt='bgr0')
    write(kind(path := tmp_path/f'out{suffix}', source), film_steps(source))
    assert ffmpeg(path).shape == (3, 50, 66, 4)


def test_sound_is_copied_where_the_container_allows(tmp_path):
    aac = save(tmp_path/'aac.mp4', np.arange(5) / 10, wave=noise())
    opus = save(tmp_path/'opus.webm', np.arange(5) / 10, wave=noise(48000), rate=48000, codecs=('libvpx-vp9', 'libopus'))
    for source, kind, suffix, same in ((aac, Overlay, '.mp4', True), (aac, CutOut, '.mov', True), (opus, Overlay, '.webm', True),
            (opus, CutOut, '.webm', True), (aac, Overlay, '.webm', False), (opus, Overlay, '.mp4', False)):
        write(kind(path := tmp_path/f'out{suffix}', source), film_steps(source))
        assert (packets(path) == packets(source)) == same
        assert probe(path).codecs[1] == ('opus' if suffix == '.webm' else 'aac')
        (x, r), (y, q) = read_sound(source), read_sound(path)
        assert abs(len(x) / r - len(y) / q) < .05 and abs(len(y) / q - SECONDS) < .05 and abs(x.std() - y.std()) < .1 * x.std()


def test_webm_has_the_same_bytes_every_time(source, tmp_path):
    steps = film_steps(source)
    for name in ('a.webm', 'b.webm'): write(Overlay(tmp_path/name, source), steps)
    assert (tmp_path/'a.webm').read_bytes() == (tmp_path/'b.webm').read_bytes()


@pytest.mark.parametrize('kind, suffix', [(Overlay, '.webm'), (CutOut, '.webm'), (CutOut, '.mov')])
def test_turned_films_come_out_upright(source, tmp_path, kind, suffix):
    data, one = bytearray(source.read_bytes()), 1 << 16
    at = data.index(b'tkhd') + 4 + 40
    data[at:at + 36] = np.array([0, one, 0, -one, 0, 0, 0, 0, 1 << 30], '>i4').tobytes()
    (turned := tmp_path/'turned.mp4').write_bytes(data)
    steps = film_steps(turned)
    write(kind(path := tmp_path/f'out{suffix}', turned), steps)
    shown = np.stack([f.image.numpy() for f in read_frames(path)]).astype(float)
    assert shown.shape[2:] == (64, 48) == tuple(steps[0].frame.shape[1:])
    assert np.abs(shown[0] - steps[0].frame.numpy()).mean() < 8


def test_colours_are_stated_and_kept(tmp_path):
    source = clip(tmp_path/'hd.mkv', (0, .1), codecs=('libx264', 'flac'))
    write(Overlay(path := tmp_path/'out.webm', source), steps := [replace(s, labels=0 * s.labels, objects=()) for s in film_steps(source)])
    assert probe(path).colors[0] == probe(source).colors[0]
    read = next(read_frames(path)).image.float()
    assert (read - steps[0].frame).abs().mean() < 4


def test_soft_masks_in_16_bits(tmp_path):
    s = step(0, marks(1, 3))
    write(Soft(tmp_path), [s])
    with Image.open(tmp_path/'000000.png') as x: values = np.array(x).astype(float)
    maps = s.maps.numpy().astype(float)         # already of the size of the frame: no resampling
    wanted = maps[1:].max(0) / (maps[0] + maps[1:].max(0))
    assert values.max() > 256 and np.abs(values / 65535 - wanted).max() < 1 / 65535
    assert (values[s.labels > 0] >= 65535 / 2).all()


def test_soft_of_maps_that_are_all_zero_is_zero(): assert not soft(replace(step(0, marks()), maps=torch.zeros(5, 3, 4))).any()


label_maps = st.integers(1, 9).flatmap(lambda h: st.integers(1, 9).flatmap(lambda w: st.lists(
    st.integers(0, 4), min_size=h * w, max_size=h * w).map(lambda v: torch.tensor(v, dtype=torch.uint8).view(h, w))))


@slow
@given(st.lists(label_maps, min_size=1, max_size=5))
def test_coco_says_the_label_maps(tmp_path, maps):
    write(Coco(tmp_path/'a.json', NAMES), steps := [step(n / 3, m) for n, m in enumerate(maps)])
    read = coco(tmp_path/'a.json')
    assert [c['name'] for c in read.loadCats(read.getCatIds())] == list(NAMES[1:])
    assert [i['time'] for i in read.loadImgs(read.getImgIds())] == [round(s.time, 6) for s in steps]
    for n, s in enumerate(steps):
        painted = np.zeros(s.labels.shape, np.uint8)
        for a in read.imgToAnns[n]:
            mask = read.annToMask(a)
            o = next(o for o in s.objects if o.index == a['category_id'])
            left, top, right, bottom = o.box
            assert a['area'] == mask.sum() and a['bbox'] == [left, top, right - left, bottom - top] and a['iscrowd'] == 0
            assert abs(a['score'] - o.score) < 1e-4
            painted[mask > 0] = a['category_id']
        assert np.array_equal(painted, s.labels)


@pytest.mark.parametrize('group', [1, 3, 10_000])
def test_tables_say_the_same(tmp_path, monkeypatch, group):
    monkeypatch.setattr(outputs, 'GROUP', group)
    steps = [step(n / 3, m) for n, m in enumerate((marks(), marks(1, 2), marks(3), marks(4, 2, 1), marks()))]
    for kind, name in ((Csv, 'a.csv'), (Parquet, 'a.parquet')): write(kind(tmp_path/name), steps)
    table = pq.read_table(tmp_path/'a.parquet').to_pylist()
    assert [{k: str(v) for k, v in r.items()} for r in table] == read_csv(tmp_path/'a.csv')
    wanted = [(s.time, n, o.name, o.index, *o.box) for s in steps for n, o in enumerate(s.objects)]
    assert [(r['object'], r['name'], r['index'], r['left'], r['top'], r['right'], r['bottom']) for r in table] == [w[1:] for w in wanted]
    assert np.allclose([r['time'] for r in table], [w[0] for w in wanted], atol=1e-6)
    assert pq.ParquetFile(tmp_path/'a.parquet').num_row_groups == {1: 3, 3: 2, 10_000: 1}[group]


def test_tables_without_a_row(tmp_path):
    for kind, name in ((Csv, 'a.csv'), (Parquet, 'a.parquet')): write(kind(tmp_path/name), [step(0, marks())])
    assert read_csv(tmp_path/'a.csv') == pq.read_table(tmp_path/'a.parquet').to_pylist() == []
    assert (tmp_path/'a.csv').read_text().strip().split(',') == pq.read_schema(tmp_path/'a.parquet').names


def test_without_pyarrow_a_sentence_before_work(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(ValueError, match=r"pip install 'ppqg_nb\[tables\]'"): Outputs(dict(parquet=tmp_path/'a.parquet'), source, NAMES)


@slow
@given(st.lists(st.sets(st.integers(1, 4), max_size=3), min_size=1, max_size=9))
def test_cues_cover_what_is_marked_and_nothing_else(tmp_path, found):
    if not (source := tmp_path/'source.mp4').exists(): clip(source)
    length = probe(source).duration
    steps = [step(n * .1, marks(*sorted(ks))) for n, ks in enumerate(found)]
    write(Cues(tmp_path/'a.vtt', source), steps)
    cues = read_cues(tmp_path/'a.vtt')
    for n, ks in enumerate(found):
        told = [names for start, end, names in cues if start - 1e-6 <= n * .1 < end - 1e-6]
        assert told == ([[' '.join(NAMES[k].split()) for k in sorted(ks)]] if ks else [])
    assert all(start < end for start, end, _ in cues) and all(a[1] <= b[0] for a, b in zip(cues, cues[1:]))
    assert len(cues) == sum(bool(b) and a != b for a, b in zip([set(), *found], found))
    if found[-1]: assert abs(cues[-1][1] - max(length, .1 * (len(found) - 1) + 1 / probe(source).fps)) < .001


@pytest.mark.parametrize('looks', [1, MOST, MOST + 1, 4 * MOST + 3])
def test_sheet_is_bounded_and_even(tmp_path, looks):
    sheet = write(Sheet(tmp_path/'a.png'), [step(float(n), marks(1)) for n in range(looks)])
    times = [t for t, _ in sheet.kept]
    assert min(looks, MOST // 2 + 1) <= len(times) <= MOST and times[0] == 0 and looks - times[-1] <= sheet.every
    assert len(set(np.diff(times))) <= 1
    with Image.open(tmp_path/'a.png') as x: assert x.format == 'PNG' and x.size[0] < 1100


def test_lines_come_at_once():
    class Stream(io.StringIO):
        flushed = 0
        def flush(self): self.flushed += 1
    with Lines(stream := Stream()) as out:
        for n in range(3):
            out.write(step(n / 3, marks(4)))
            line = json.loads(stream.getvalue().splitlines()[n])
            assert stream.flushed > n and line['objects'][0]['name'] == NAMES[4] and line['time'] == round(n / 3, 6)


def test_a_film_of_one_frame_without_an_object(tmp_path):
    source = clip(tmp_path/'one.mkv', (0,), codecs=('ffv1', 'flac'), pix_fmt='bgr0')
    (out := tmp_path/'out').mkdir()
    write(Outputs(everything(out), source, NAMES), film_steps(source))
    assert len(ffmpeg(out/'overlay.mp4', 3)) == len(ffmpeg(out/'cutout.webm')) == 1
    assert (len(coco(out/'coco.json').getImgIds()), coco(out/'coco.json').getAnnIds(), read_cues(out/'cues.vtt')) == (1, [], [])


def test_a_raise_in_the_middle_leaves_all_as_it_was(source, tmp_path):
    (out := tmp_path/'out').mkdir()
    (out/'csv.csv').write_text('mine')
    (out/'labels').mkdir()
    (out/'labels'/'000000.png').write_text('mine')
    were, steps = listing(out), film_steps(source)
    for count in (0, 1, 6):
        with pytest.raises(KeyboardInterrupt), Outputs(everything(out), source, NAMES) as files:
            for s in steps[:count]: files.write(s)
            raise KeyboardInterrupt
        assert listing(out) == were and sorted(p.name for p in out.iterdir()) == ['csv.csv', 'labels']


@pytest.mark.parametrize('kind', [Sheet, Csv, Cues])
def test_a_raise_at_the_end_leaves_all_as_it_was(source, tmp_path, monkeypatch, kind):
    "The last bytes of one file cannot be written: no other file has its name yet."
    (out := tmp_path/'out').mkdir()
    def leave(self, *error):
        self.context.__exit__(*error)
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(kind, '__exit__', leave)
    with pytest.raises(OSError): write(Outputs(everything(out), source, NAMES), film_steps(source))
    assert list(out.iterdir()) == []


@pytest.mark.parametrize('asked, words', [
    (dict(film='a.mp4'), 'no output film'), (dict(csv='a.txt'), 'end in .csv'), (dict(cutout='a.mp4'), 'end in .webm or .mov'),
    (dict(csv='no/a.csv'), 'no folder'), (dict(overlay='source.mp4'), 'the input itself'), (dict(labels='m', soft='./m'), 'taken by the output labels'),
    (dict(overlay='a.webm', cutout='a.webm'), 'taken by the output overlay'), (dict(labels='source.mp4'), 'is a file'),
    (dict(sheet='folder.png'), 'is a folder')])
def test_what_cannot_work_is_said_in_a_sentence(source, tmp_path, monkeypatch, asked, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'folder.png').mkdir()
    were = listing(tmp_path)
    with pytest.raises(ValueError, match=words) as e: Outputs(asked, 'source.mp4', NAMES)
    assert str(e.value).endswith('.') and '\n' not in str(e.value) and listing(tmp_path) == were


def test_kinds_by_suffix():
    for kind, suffixes in SUFFIXES.items():
        for s in suffixes: assert kind_of(f'a{s.upper()}') == (kind if (kind, s) != ('cutout', '.webm') else 'overlay')
    assert kind_of('maps') == 'labels'
    with pytest.raises(ValueError, match='.parquet'): kind_of('a.avi')
    check_outputs(dict(overlay='new.webm', lines=sys.stdout), 'film.mp4')
