"Sets on disk: what is read is what was made, a stopped run goes on to the same bytes, and nothing else is touched."
import hashlib, json, signal, subprocess, sys, time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ppqg_nb import data, making
from ppqg_nb.audit import check
from ppqg_nb.core import BINARY_CLASSES, Config
from ppqg_nb.data import AVSBench
from ppqg_nb.making import SEEDS, write_set, write_video
from ppqg_nb.scenes import CLASSES, Scenes
from ppqg_nb.video import probe, read_frames, read_sound

AVSS = 'AVSBench_semantic'


def made(kind='single', length=3, seed=2, size=32, **more): return Scenes(seed, kind, size, length=length, **more)


def state(folder): return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
                           for p in folder.rglob('*') if p.is_file()}


def fails(match, f, *args, **kw):
    "Raises one sentence that holds `match`."
    with pytest.raises(ValueError) as caught: f(*args, **kw)
    text = str(caught.value)
    assert match in text and '\n' not in text and text.endswith('.'), text


class Few:
    "A source of one's own: the least that is asked of one."
    task, classes, seed = 'avss', ('background', 'ring', 'star'), 5
    def __init__(self, clips): self.clips = self.entries = clips
    def __len__(self): return len(self.clips)
    def __getitem__(self, i): return self.clips[i]


def few(n=2, steps=5):
    return Few([replace(made('multi', n, steps=steps)[i], name=f'clip-{i}') for i in range(n)])


@pytest.mark.parametrize('kind', ['single', 'multi', 'semantic', 'null', 'mixed'])
@pytest.mark.parametrize('task, steps', [('avss', 5), ('avss', 10), ('ms3', 5)])
def test_what_is_read_is_what_was_made(kind, task, steps, tmp_path):
    source = made(kind, steps=steps)
    assert write_set(tmp_path/'set', source, task, 'val') == 3
    found = AVSBench(tmp_path/'set', task, 'val')
    assert len(found) == 3 and found.classes == (CLASSES if task == 'avss' else BINARY_CLASSES)
    for a, b in zip(source, found):
        assert torch.equal(b.labels, a.labels if task == 'avss' else (a.labels > 0).long())
        assert torch.equal(b.waveform, a.waveform) and (b.name, b.rate) == (a.name, a.rate) and b.annotated.all()
        away = (b.frames.float() - a.frames).abs()
        assert away.mean() < (4 if task == 'avss' else 1e-9)
    report = check(tmp_path/'set')
    assert report.ok and {n.kind for n in report.notes} <= {'silent sound'} | ({'count differs'} if task == 'ms3' else set())


def test_binary_labels_may_be_made_or_written(tmp_path):
    for name, task in (('a', 'avss'), ('b', 'ms3')): write_set(tmp_path/name, made('multi', task=task), 'ms3', 'test')
    a, b = (state(tmp_path/n) for n in 'ab')
    assert a == b


def test_names_of_labels(tmp_path):
    write_set(tmp_path, made(), 'avss', 'train')
    numbers = json.loads((tmp_path/AVSS/'label2idx.json').read_text())
    assert numbers == {name: i + 1 for i, name in enumerate(CLASSES)}
    for e, s in zip(AVSBench(tmp_path, 'avss', 'train').entries, made()): assert e.classes == tuple(CLASSES[i] for i in s.labels.unique()[1:])


def test_pairs_are_two_clips_with_the_same_frames(tmp_path):
    write_set(tmp_path, made(dubs=2), 'avss', 'test')
    d = AVSBench(tmp_path, 'avss')
    assert [c.name for c in d] == [f'single-2-{i:06}-{k}' for i in range(3) for k in (0, 1)]
    for i in (0, 2, 4): assert torch.equal(d[i].frames, d[i + 1].frames) and not torch.equal(d[i].labels, d[i + 1].labels)
    for i in range(5): assert len({p.read_bytes() for e in d.entries[:2] for p in [e.frames[i]]}) == 1


def test_splits_in_one_folder(tmp_path):
    for split, seed in SEEDS.items(): write_set(tmp_path, made(seed=seed, length=1 + seed), 'avss', split)
    assert [len(AVSBench(tmp_path, 'avss', split)) for split in SEEDS] == [1, 2, 3]
    assert list(json.loads((tmp_path/'made.json').read_text())['splits']) == ['train', 'val', 'test']
    report = check(tmp_path)
    assert report.ok and not report.notes and [r for r in report.rows() if r[0] == 'avss'] == [
        ('avss', 'train', 1, 1, None), ('avss', 'val', 2, 2, None), ('avss', 'test', 3, 3, None)]


def test_the_audit_knows_these_names(tmp_path):
    "A cross where the table says something else; a name that is none; a number that is none."
    write_set(tmp_path, made(), 'avss', 'test')
    clip, table = made()[0], tmp_path/AVSS/'metadata.csv'
    mask, text = tmp_path/AVSS/'v1m'/clip.name/'labels_semantic/1.png', table.read_text()
    whole, there = mask.read_bytes(), np.array(Image.open(mask))
    for value, kind in ((CLASSES.index('triangle'), 'mislabelled'), (9, 'value out of range')):
        Image.fromarray(np.where(there > 0, value, 0).astype(np.uint8)).save(mask)
        problems = check(tmp_path).problems
        assert problems[0].kind == kind and {p.kind for p in problems[1:]} <= {'labels disagree'}
    mask.write_bytes(whole)
    table.write_text(text.replace(CLASSES[clip.labels.max()], 'gong'))
    assert 'unknown class' in {n.kind for n in check(tmp_path).notes}


def test_a_source_of_ones_own(tmp_path):
    source = few()
    for c in source.clips: c.labels.clamp_(max=2)
    assert write_set(tmp_path, source, 'avss', 'test', video=True) == 2
    d = AVSBench(tmp_path, 'avss')
    assert d.classes == Few.classes and [c.name for c in d] == ['clip-0', 'clip-1'] and check(tmp_path).ok
    assert sorted(p.name for p in (tmp_path/'videos').iterdir()) == ['clip-0.mp4', 'clip-1.mp4']


def test_a_model_with_these_classes_is_scored(tmp_path):
    from ppqg_nb.evaluation import evaluate
    from ppqg_nb.vct import VCT
    write_set(tmp_path/'set', made('mixed'), 'avss', 'test')
    config = Config(classes=CLASSES, sounds=CLASSES, image_size=32, hidden=16, num_queries=4, pixel_mlp=(8,), layers=2, heads=2, ffn=16,
                    queries='group', prototypes='none', vggish_width=.05, backbone='resnet10t', backbone_options=dict(output_stride=32))
    result = evaluate(VCT(config), AVSBench(tmp_path/'set', 'avss'), tmp_path/'scores')
    assert [row['class'] for row in result['classes']] == list(CLASSES)
    with pytest.raises(ValueError, match='a task of its own .9 classes: background, disc, square'):
        evaluate(VCT(replace(config, classes=CLASSES[:5])), AVSBench(tmp_path/'set', 'avss'), tmp_path/'other')


# stopped, and started again

@pytest.mark.parametrize('after', [0, 1, 4, 6])
@pytest.mark.parametrize('video', [False, True])
def test_interrupted(after, video, tmp_path):
    source = made('multi', length=3, dubs=2)
    write_set(tmp_path/'whole', source, 'avss', 'test', video=video)
    def stop(done, total):
        if done == after: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): write_set(tmp_path/'set', source, 'avss', 'test', stop, video)
    assert write_set(tmp_path/'set', source, 'avss', 'test', video=video) == 6 - after
    assert state(tmp_path/'set') == state(tmp_path/'whole')
    assert write_set(tmp_path/'set', source, 'avss', 'test', video=video) == 0


RUN = '''
import sys
from ppqg_nb.making import write_set
from ppqg_nb.scenes import Scenes
write_set(sys.argv[1], Scenes(2, 'mixed', 64, length=40), 'avss', 'test', lambda done, total: print(done, flush=True), True)
'''


@pytest.mark.skipif(sys.platform == 'win32', reason='signals of POSIX')
def test_killed_again_and_again(tmp_path):
    "kill -9 at moments that differ; the end is the same."
    rng, runs, args = np.random.default_rng(0), 0, [sys.executable, '-c', RUN, str(tmp_path/'set')]
    while True:
        process, runs = subprocess.Popen(args, stdout=subprocess.PIPE, text=True), runs + 1
        process.stdout.readline()
        if runs < 4:
            time.sleep(rng.uniform(.02, .25))
            process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0: break
    write_set(tmp_path/'whole', Scenes(2, 'mixed', 64, length=40), 'avss', 'test', video=True)
    assert runs > 2 and state(tmp_path/'set') == state(tmp_path/'whole')


def test_what_a_kill_leaves_of_a_clip_is_made_anew(tmp_path):
    source = made()
    write_set(tmp_path/'whole', source, 'avss', 'test', video=True)
    write_set(tmp_path/'set', made(length=1), 'avss', 'test', video=True)
    home = tmp_path/'set'/AVSS
    for path in (home/'v1m'/source[1].name/'frames/3.jpg', home/f'.{source[1].name}.part/4.jpg',
                 tmp_path/'set'/'videos'/f'.{source[1].name}.mp4.part'):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('half')
    assert write_set(tmp_path/'set', source, 'avss', 'test', video=True) == 2
    assert state(tmp_path/'set') == state(tmp_path/'whole')


def test_a_film_that_is_missing_is_made(tmp_path):
    write_set(tmp_path, made(), 'avss', 'test', video=True)
    before, film = state(tmp_path), tmp_path/'videos'/f'{made()[1].name}.mp4'
    film.unlink()
    assert write_set(tmp_path, made(), 'avss', 'test', video=True) == 1 and state(tmp_path) == before


def test_a_set_grows(tmp_path):
    write_set(tmp_path/'whole', made(length=5), 'ms3', 'test')
    for n in (1, 2, 5, 3): write_set(tmp_path/'set', made(length=n), 'ms3', 'test')
    assert state(tmp_path/'set') == state(tmp_path/'whole')


def test_rows_are_added_not_rewritten(tmp_path, monkeypatch):
    "The table is read a fixed number of times, however many clips there are."
    reads, rows = [], data._rows
    monkeypatch.setattr(data, '_rows', lambda table: reads.append(table) or rows(table))
    write_set(tmp_path, made(length=1), 'avss', 'test')
    write_set(tmp_path, made(length=6), 'avss', 'test')
    assert len(reads) == 1


def test_full_disk(tmp_path, monkeypatch):
    "The error comes through, and the run goes on later."
    write_set(tmp_path/'whole', made(), 'avss', 'test', video=True)
    for module, name in ((data, '_write_sound'), (data, '_add_row'), (making, 'write_video'), (making.os, 'replace')):
        def full(*args, **kw): raise OSError(28, 'No space left on device')
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(OSError, match='No space left'): write_set(tmp_path/'set', made(), 'avss', 'test', video=True)
        assert not [p for p in tmp_path.rglob('.*')]
    write_set(tmp_path/'set', made(), 'avss', 'test', video=True)
    assert state(tmp_path/'set') == state(tmp_path/'whole')


# what is refused, and leaves no trace

def test_what_does_not_fit(tmp_path):
    fails('take avss or ms3', write_set, tmp_path/'set', made(), 's4', 'test')
    fails("task is 'v1m'; it must be avss or ms3", write_set, tmp_path/'set', made(), 'v1m', 'test')
    fails("split is 'test2'; it must be one of train, val, test", write_set, tmp_path/'set', made(), 'avss', 'test2')
    fails('have labels for ms3, and avss is asked for', write_set, tmp_path/'set', made(task='ms3'), 'avss', 'test')
    fails('last 10 seconds; those of ms3 last 5', write_set, tmp_path/'set', made(steps=10), 'ms3', 'test')
    fails('last 3 seconds; those of avss last 5 or 10', write_set, tmp_path/'set', made(steps=3), 'avss', 'test')
    for classes in (('ring', 'background'), ('background', 'a_b'), ('background', 'ring', 'ring')):
        source = few()
        source.classes = classes
        fails('background must come first, none twice, and none hold a _', write_set, tmp_path/'set', source, 'avss', 'test')
    assert not list(tmp_path.iterdir())


def test_folders_of_others(tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine/letter').write_text('x')
    write_set(tmp_path/'set', made(), 'avss', 'test')
    (tmp_path/'bad').mkdir()
    (tmp_path/'bad/made.json').write_text('[1')
    before = state(tmp_path)
    fails('holds files, but no made.json', write_set, tmp_path/'mine', made(), 'avss', 'test')
    fails('is a file; name a folder', write_set, tmp_path/'mine/letter', made(), 'avss', 'test')
    fails('made.json is damaged', write_set, tmp_path/'bad', made(), 'avss', 'test')
    for wrong, source in (("kind 'single', and 'multi'", made('multi')), ('seed 2, and 3', made(seed=3)), ('size 32, and 64', made(size=64)),
                          ('dubs 1, and 2', made(dubs=2)), ("source 'Scenes', and 'Few'", few())):
        fails(f'was made with {wrong}', write_set, tmp_path/'set', source, 'avss', 'test')
    fails("was made with task 'avss', and 'ms3'", write_set, tmp_path/'set', made(), 'ms3', 'test')
    fails('test has the seed 2; take another one for train', write_set, tmp_path/'set', made(), 'avss', 'train')
    assert state(tmp_path) == before


def test_another_version_is_another_set(tmp_path, monkeypatch):
    write_set(tmp_path, made(), 'avss', 'test')
    monkeypatch.setattr(making, '__version__', '99.0')
    fails("and '99.0' is asked for", write_set, tmp_path, made(), 'avss', 'test')


@pytest.mark.parametrize('text', ['', '{}', '{"splits": {"test": 3}}', '{"splits": []}', 'null', '\xff'])
def test_damaged_record(text, tmp_path):
    (tmp_path/'made.json').write_text(text, encoding='latin-1')
    fails('made.json is damaged; make the set in another folder', write_set, tmp_path, made(), 'avss', 'test')


def test_an_empty_folder_and_a_hidden_file_will_do(tmp_path):
    (tmp_path/'.DS_Store').touch()
    assert write_set(tmp_path, made(), 'avss', 'test') == 3


# films

@pytest.mark.parametrize('size', [32, 65, 128])
def test_films(size, tmp_path):
    clip = made('multi', 1, size=size)[0]
    write_video(tmp_path/'a.mp4', clip)
    media, film = probe(tmp_path/'a.mp4'), list(read_frames(tmp_path/'a.mp4'))
    assert (media.width, media.height) == (size + size % 2,) * 2 and media.duration == pytest.approx(5, abs=.01) and media.codecs == ('h264', 'aac')
    assert [f.time for f in film] == [i / 8 for i in range(40)]
    for i, f in enumerate(film): assert (f.image[:, :size, :size].float() - clip.frames[i // 8]).abs().mean() < 5
    x, rate = read_sound(tmp_path/'a.mp4')
    assert rate == clip.rate and (x[:80000] - clip.waveform).square().mean() < 2e-3 * clip.waveform.square().mean()
    data = (tmp_path/'a.mp4').read_bytes()
    write_video(tmp_path/'a.mp4', clip)
    assert (tmp_path/'a.mp4').read_bytes() == data and 0 < data.index(b'moov') < data.index(b'mdat')


def test_a_silent_film_has_a_track_of_silence(tmp_path):
    clip = next(s for s in made('null', 8) if not s.waveform.any())
    write_video(tmp_path/'a.mp4', clip)
    assert probe(tmp_path/'a.mp4').rate == 16000 and read_sound(tmp_path/'a.mp4')[0].abs().max() < 1e-3


@pytest.mark.parametrize('rate', [8000, 22050, 44100, 48000])
def test_other_rates(rate, tmp_path):
    clip = replace(made(length=1)[0], rate=rate, waveform=torch.sin(torch.arange(5 * rate) * .05))
    write_video(tmp_path/'a.mp4', clip)
    assert probe(tmp_path/'a.mp4').rate == rate


def test_films_are_segmented(tmp_path):
    from ppqg_nb.outputs import segment_into
    from ppqg_nb.segmenter import Segmenter
    from ppqg_nb.vct import VCT
    write_set(tmp_path, made(length=1), 'avss', 'test', video=True)
    model = VCT.from_preset('scenes-tiny')
    assert segment_into(dict(overlay=tmp_path/'o.mp4'), Segmenter(model, 32), next((tmp_path/'videos').iterdir()), fps=1) == 40
