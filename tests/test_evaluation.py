"Scores of a model on a data set: the right numbers, in the right files, whatever happens on the way."
import copy, csv, json, math, multiprocessing, os, random, signal, sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import ppqg_nb.evaluation as ev
from ppqg_nb.audio import log_mel_patches
from ppqg_nb.core import AVSS_CLASSES, BINARY_CLASSES, S4_CATEGORIES, Clip, preset
from ppqg_nb.data import AVSBench, write_clip
from ppqg_nb.evaluation import evaluate, fingerprint, nearest, ranked
from ppqg_nb.metrics import CONVENTIONS, score
from ppqg_nb.vct import VCT

WORDS = ('background', 'bell', 'bird')
FILES = ['clips.jsonl', 'per_class.csv', 'per_clip.csv', 'result.json', 'worst_best.png']
TINY = dict(image_size=32, hidden=32, num_queries=4, pixel_mlp=(8, 8), pixel_layers=1, pixel_ffn=16, layers=1, levels=('audio',),
              heads=2, ffn=16, vggish_width=.0625, backbone='convnext_atto', backbone_options=dict(depths=[1, 1, 1, 1], dims=[8, 8, 16, 16]))


class Little(torch.nn.Module):
    "Called like a `VCT`: its maps are colours, blurred and mixed, and shifted by how loud it is."
    def __init__(self, classes=WORDS, **changes):
        super().__init__()
        self.config = replace(preset('scenes-tiny'), classes=classes, sounds=classes, **(dict(image_size=32) | changes))
        g = torch.Generator().manual_seed(4)
        self.mix, self.loud = (torch.nn.Parameter(torch.randn(len(classes), *more, generator=g)) for more in ((3, 5, 5), (1, 1)))

    def forward(self, frames, patches, regions=None, every_layer=True):
        x = frames - .5 if regions is None else frames - regions / 255
        return F.conv2d(x, self.mix, padding=2) + patches.mean((1, 2))[:, None, None, None] * self.loud

    def compose(self, pred, size=None): return pred.softmax(1)


def made(i, frames=3, size=(40, 56), **changes):
    "A clip of coloured noise: a bell, a bird, or both, and now and then nothing."
    g = torch.Generator().manual_seed(i)
    labels = torch.zeros(frames, *size, dtype=torch.int64)
    for t in range(frames):
        for k in (1, 2):
            y, x = (int(torch.randint(0, n - 12, (), generator=g)) for n in size)
            if torch.rand((), generator=g) < .7: labels[t, y:y + 12, x:x + 12] = k
    pixels = torch.randint(0, 256, (frames, 3, *size), generator=g, dtype=torch.uint8)
    return replace(Clip(pixels, labels, torch.randn(frames * 16000, generator=g) * .1, 16000, f'clip-{i}'), **changes)


class Clips:
    "Clips in memory."
    def __init__(self, clips, task='avss', classes=WORDS): self.entries, self.task, self.split, self.classes = clips, task, 'test', classes
    def __len__(self): return len(self.entries)
    def __getitem__(self, i): return self.entries[i]


def binary(n, task='ms3', **changes):
    return Clips([(c := made(i)) and replace(c, labels=(c.labels > 0).long(), **changes) for i in range(n)], task, BINARY_CLASSES)


def table(path):
    with open(path, newline='', encoding='utf-8') as f: return list(csv.DictReader(f))


def contents(folder): return {p.name: p.read_bytes() if p.is_file() else None for p in folder.iterdir()}


def by_hand(model, clips):
    "Maps of all clips at 224, one after the other, and the truth, without anything of the module."
    maps, truth = [], []
    for c in clips:
        frames = F.interpolate(c.frames / 255, (32, 32), mode='bilinear', antialias=True).clamp(0, 1)
        with torch.no_grad(): m = model.compose(model(frames, log_mel_patches(c.waveform, c.rate, len(frames))))
        maps.append(F.interpolate(m, (224, 224), mode='bilinear'))
        truth.append(F.interpolate(c.labels[:, None].double(), (224, 224), mode='nearest-exact')[:, 0].long())
    return torch.stack(maps), torch.stack(truth)


# the numbers

def test_avss_numbers_are_those_of_chapter_20(tmp_path):
    model, clips = Little(), [made(i) for i in range(5)]
    result = evaluate(model, Clips(clips), tmp_path/'out')
    maps, truth = by_hand(model, clips)
    for name in CONVENTIONS:
        wanted = score(maps, truth, 'avss', name)
        for k, v in result['scores'][name].items(): assert v == pytest.approx(wanted[k], abs=1e-9), (name, k)
        for k in 'JF':
            rows = [math.nan if r[f'{k}_{name}'] is None else r[f'{k}_{name}'] for r in result['classes']]
            assert rows == pytest.approx(wanted[f'{k}_by_class'].tolist(), abs=1e-9, nan_ok=True)
    for k in ('frames', 'empty', 'false_positives', 'J_sounding', 'J_small', 'J_medium', 'J_large'):
        value = math.nan if result[k] is None else result[k]
        assert value == pytest.approx(wanted[k], abs=1e-9, nan_ok=True), k
    assert result['scores']['frame']['J'] != result['scores']['dataset']['J']


@pytest.mark.parametrize('task', ['s4', 'ms3'])
def test_binary_numbers_are_those_of_chapter_20(tmp_path, task):
    model, data = Little(BINARY_CLASSES), binary(5, task)
    result = evaluate(model, data, tmp_path/'out')
    maps, truth = by_hand(model, data.entries)
    prob = maps.softmax(2)[:, :, 1]
    for name in CONVENTIONS:
        wanted = score(prob, truth, task, name)
        assert result['scores'][name] == pytest.approx({k: wanted[k] for k in 'JF'}, abs=1e-9)
    rows = table(tmp_path/'out'/'per_clip.csv')
    for row, p, t in zip(rows, prob, truth):
        one = score(p[None], t[None], task, 'released')
        assert [float(row['J']), float(row['F'])] == pytest.approx([one['J'], one['F']], abs=1e-6)
        assert int(row['empty_frames']) == sum(not x.any() for x in t)
    row, = table(tmp_path/'out'/'per_class.csv')
    assert row['class'] == 'sounding object' and int(row['frames']) == int(truth.flatten(2).any(2).sum())
    assert float(row['F_dataset']) == pytest.approx(result['scores']['dataset']['F'], abs=1e-6)


def test_s4_by_category(tmp_path):
    data = binary(5, 's4')
    data.entries = [replace(c, sounds=torch.tensor([k])) for c, k in zip(data.entries, (7, 2, 7, 2, 2))]
    model = Little(BINARY_CLASSES)
    evaluate(model, data, tmp_path/'out')
    rows = table(tmp_path/'out'/'per_class.csv')
    assert [(r['class'], r['clips']) for r in rows] == [(S4_CATEGORIES[2], '3'), (S4_CATEGORIES[7], '2')]
    maps, truth = by_hand(model, [data.entries[i] for i in (0, 2)])
    wanted = score(maps.softmax(2)[:, :, 1], truth, 's4', 'released')
    assert [float(rows[1][f'{k}_released']) for k in 'JF'] == pytest.approx([wanted[k] for k in 'JF'], abs=1e-6)
    assert int(rows[1]['frames']) == int(truth.flatten(2).any(2).sum())


def test_rows_of_clips_and_classes(tmp_path):
    clips = [made(i) for i in range(4)] + [replace(made(4), labels=made(4).labels * 0)]
    evaluate(Little(), Clips(clips), tmp_path/'out')
    rows, classes = table(tmp_path/'out'/'per_clip.csv'), table(tmp_path/'out'/'per_class.csv')
    assert [r['name'] for r in rows] == [c.name for c in clips]
    there = [[set(t.unique().tolist()) for t in c.labels] for c in clips]
    for row, sets in zip(rows, there):
        assert row['classes'] == ';'.join(WORDS[k] for k in sorted(set().union(*sets) - {0}))
        assert (int(row['frames']), int(row['empty_frames'])) == (3, sum(s == {0} for s in sets))
    for k, row in enumerate(classes):
        assert row['class'] == WORDS[k] and int(row['frames']) == sum(k in s for sets in there for s in sets)
        assert int(row['clips']) == sum(any(k in s for s in sets) for sets in there)


def test_only_annotated_frames_are_seen_and_scored(tmp_path):
    model, c = Little(), made(1)
    keep = torch.tensor([True, False, True])
    some = replace(c, annotated=keep, labels=c.labels.where(keep[:, None, None], 255))
    cut = replace(c, frames=c.frames[keep], labels=c.labels[keep], patches=log_mel_patches(c.waveform, c.rate, 3)[keep])
    one, two = (evaluate(model, Clips([x]), tmp_path/x.name/str(len(x.frames))) for x in (some, cut))
    assert one['frames'] == 2
    for name in CONVENTIONS: assert one['scores'][name] == pytest.approx(two['scores'][name], abs=1e-9)
    with pytest.raises(ValueError, match='Clip clip-1: none of its frames is annotated'):
        evaluate(model, Clips([replace(c, annotated=keep & False)]), tmp_path/'none')


@pytest.mark.parametrize('task', ['avss', 'ms3'])
def test_ignored_pixels_touch_no_class_but_the_background(task):
    g = torch.Generator().manual_seed(0)
    maps, truth = torch.rand(2, 3 if task == 'avss' else 2, 30, 40, generator=g), torch.randint(0, 2, (2, 30, 40), generator=g)
    part = truth.clone()
    part[:, :, 25:] = 255
    a = ev.clip_metric(maps, part, task)
    b = ev.clip_metric(maps[..., :25], truth[..., :25], task)
    if task == 'avss':
        assert torch.equal(a.counts[:, 1:], b.counts[:, 1:]) and torch.equal(a.JF[:, 1:], b.JF[:, 1:])
        assert a.counts[:, 0].tolist() == (b.counts[:, 0] + 2 * 30 * 15).tolist()
    else:
        assert torch.equal(a.half, b.half) and torch.equal(a.J, b.J)
        assert torch.equal(a.predicted[1:], b.predicted[1:])      # at threshold 0 everything is predicted


@pytest.mark.parametrize('old, new', [((40, 56), (224, 224)), ((7, 5), (3, 11)), ((6, 4), (6, 4)), ((1, 1), (2, 3))])
def test_nearest_takes_the_pixel_below_the_centre(old, new):
    x = torch.arange(2 * old[0] * old[1]).view(2, *old)
    assert torch.equal(nearest(x, new), F.interpolate(x[None].double(), new, mode='nearest-exact')[0].long())


def test_size_is_what_the_model_sees(tmp_path):
    seen, model = [], Little()
    model.register_forward_pre_hook(lambda m, args: seen.append(tuple(args[0].shape[2:])))
    results = [evaluate(model, Clips([made(0), made(1)]), tmp_path/str(size), size=size) for size in (None, 64)]
    assert set(seen[:4]) == {(32, 32)} and set(seen[4:]) == {(64, 64)} and len(seen) == 8
    assert [r['size'] for r in results] == [32, 64] and results[0]['scores'] != results[1]['scores']


def test_region_maps_reach_the_model_unmixed(tmp_path):
    model = Little(regions=True)
    clips = [made(i, regions=torch.randint(0, 3, (3, 3, 40, 56)).to(torch.uint8) * 100) for i in range(2)]
    seen = []
    model.register_forward_pre_hook(lambda m, args: seen.append(args[2]))
    one = evaluate(model, Clips(clips), tmp_path/'one')
    assert torch.equal(seen[0], nearest(clips[0].regions, (32, 32))) and seen[0].dtype == torch.uint8
    two = evaluate(model, Clips([replace(c, regions=c.regions // 2) for c in clips]), tmp_path/'two')
    assert one['data'] == two['data'] and one['regions'] != two['regions'] and one['scores'] != two['scores']
    assert evaluate(Little(), Clips([made(0)]), tmp_path/'three')['regions'] is None
    with pytest.raises(ValueError, match='Clip clip-1: the model needs region maps'):
        evaluate(model, Clips([clips[0], made(1)]), tmp_path/'four')


# the files

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "An unbroken run of six clips: model, data and folder."
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, data, out = Little(), Clips([made(i) for i in range(6)]), tmp_path_factory.mktemp('whole')
    evaluate(model, data, out)
    return model, data, out


def test_files(whole):
    model, data, out = whole
    assert sorted(contents(out)) == FILES
    result = json.loads((out/'result.json').read_text(encoding='utf-8'))
    assert (result['task'], result['split'], result['limit'], result['clips'], result['frames']) == ('avss', 'test', None, 6, 18)
    assert set(result['versions']) == {'ppqg_nb', 'python', 'torch', 'torchvision', 'timm'} and result['seed'] == 0
    assert result['weights'] == fingerprint(model.state_dict()) and result['config']['image_size'] == 32
    assert not {'time', 'date', 'seconds', 'duration'} & set(result) and 'NaN' not in (out/'result.json').read_text()
    assert len((out/'clips.jsonl').read_bytes().splitlines()) == 7
    with Image.open(out/'worst_best.png') as sheet: assert sheet.size[0] == 640 and sheet.size[1] > 6 * 150


@pytest.mark.parametrize('workers', [0, 2])
def test_again_is_the_same_bytes_and_draws_nothing(whole, tmp_path, workers):
    model, data, out = whole
    calls, before = [], torch.get_rng_state()
    evaluate(model.train(), data, tmp_path/'again', workers=workers, progress=lambda *n: calls.append(n))
    assert contents(tmp_path/'again') == contents(out) and not model.training
    assert torch.equal(torch.get_rng_state(), before) and calls == [(i, 6) for i in range(7)]


def test_each_clip_is_on_disk_before_the_next(whole, tmp_path):
    model, data, out = whole
    lines = []
    evaluate(model, data, tmp_path/'out', progress=lambda *n: lines.append((tmp_path/'out'/'clips.jsonl').read_bytes().count(b'\n')))
    assert lines == [1, 2, 3, 4, 5, 6, 7]


def test_limit(whole, tmp_path):
    model, data, out = whole
    assert evaluate(model, data, tmp_path/'a', limit=2)['clips'] == 2
    assert (tmp_path/'a'/'per_clip.csv').read_text().splitlines() == (out/'per_clip.csv').read_text().splitlines()[:3]
    assert evaluate(model, data, tmp_path/'b', limit=99)['data'] == evaluate(model, data, tmp_path/'c')['data']


class Random(Clips):
    "Frames are noise."
    def __getitem__(self, i): return replace(self.entries[i], frames=torch.randint(0, 256, (3, 3, 40, 56), dtype=torch.uint8))


def test_a_random_data_set_is_the_same_whoever_reads_it(tmp_path):
    clips, results = [made(i) for i in range(4)], []
    for workers in (0, 2):
        torch.manual_seed(workers)
        results.append(evaluate(Little(), Random(clips), tmp_path/str(workers), workers=workers))
    assert results[0] == results[1]


def test_worst_and_best():
    rows = [dict(J=j) for j in (.5, .1, .1, .9, .3, .2, .8, .4, .7, .6)]
    assert ranked(rows) == ([1, 2, 5, 4], [3, 6, 8, 9])
    for n in range(1, 12):
        worst, best = ranked(rows[:n])
        assert not set(worst) & set(best) and len(worst) + len(best) == min(n, 8) and 0 <= len(worst) - len(best) <= 1


def test_sheet_shows_the_middle_annotated_frame_as_scored(tmp_path):
    c = made(2, frames=5, size=(112, 224))
    c = replace(c, annotated=torch.tensor([True, False, False, True, False]), name='a' * 300)
    title, pictures = ev.sheet_row(Little(), c, 'avss', 32, 'cpu', c.name)
    assert title.endswith('frame 4 of 5') and {p.size for p in pictures} == {(202, 101)}
    small = F.interpolate(c.frames[3:4].float(), (101, 202), mode='bilinear', antialias=True)[0].round()
    assert np.abs(np.array(pictures[0]).transpose(2, 0, 1) - small.numpy()).max() <= 1
    assert ev.contact_sheet([(title, pictures)] * 3).size == (640, 26 + 3 * (18 + 101 + 8))


def test_fingerprint_of_data_depends_on_all_that_counts():
    c = made(0)
    of = lambda **x: fingerprint(ev.data_of(replace(c, **x)))
    changed = [of(), of(rate=8000), of(waveform=c.waveform.double()), of(annotated=torch.ones(3, dtype=torch.bool))]
    for name in ('frames', 'labels', 'waveform'):
        x = getattr(c, name).clone()
        x.view(-1)[-1] += 1
        changed.append(of(**{name: x}))
    assert len(set(changed)) == len(changed)
    assert of(name='other', regions=c.frames, sounds=torch.tensor([1])) == of(frames=c.frames.clone()) == of()
    assert of(frames=c.frames.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)) == of()


@pytest.mark.parametrize('x', [torch.tensor(1.), torch.zeros(0), torch.ones(2, dtype=torch.bfloat16), torch.tensor([True])])
def test_fingerprint_of_any_tensor(x): assert len(fingerprint(dict(x=x))) == 64 and fingerprint(dict(x=x)) != fingerprint(dict(y=x))


def test_from_disk(tmp_path):
    "The data sets of chapter 21, one of each task, and the model of chapter 12."
    def model(classes): return VCT(replace(preset('scenes-tiny'), classes=classes, sounds=classes, **TINY))
    for i in range(3):
        c = made(i, frames=5)
        write_clip(tmp_path/'root', c, 's4', 'test', category=S4_CATEGORIES[i])
        write_clip(tmp_path/'root', c, 'ms3', 'test')
        write_clip(tmp_path/'root', replace(c, labels=c.labels + 5 * (c.labels > 0)), 'avss', 'test')
    binary = model(BINARY_CLASSES)
    s4, ms3 = (evaluate(binary, AVSBench(tmp_path/'root', task), tmp_path/task) for task in ('s4', 'ms3'))
    assert s4['scores'] == ms3['scores'] and s4['data'] == ms3['data']
    assert [r['class'] for r in table(tmp_path/'s4'/'per_class.csv')] == list(S4_CATEGORIES[:3])
    avss = evaluate(model(AVSS_CLASSES), AVSBench(tmp_path/'root', 'avss'), tmp_path/'avss', workers=2)
    assert [r['clips'] for r in avss['classes']][6:8] == [sum(int((made(i, 5).labels == k).any()) for i in range(3)) for k in (1, 2)]


# broken off

fork = pytest.mark.skipif(not hasattr(os, 'fork') or sys.platform == 'darwin', reason='needs fork')


def start(job):
    "A process of its own that does `job`."
    process = multiprocessing.get_context('fork').Process(target=job)
    process.start()
    return process


@fork
def test_killed_at_any_moment_and_resumed(whole, tmp_path):
    model, data, out = whole
    rng, kills = random.Random(0), 0
    for seed in range(4):
        folder, tries = tmp_path/str(seed), 0
        while not (folder/'result.json').exists():
            process = start(lambda: evaluate(model, data, folder, resume=tries > 0))
            if tries < 4:
                process.join(rng.uniform(.02, .4))
                if process.is_alive():
                    process.kill()
                    kills += 1
            process.join()
            tries += 1
        if process.exitcode: evaluate(model, data, folder, resume=True)
        assert contents(folder) == contents(out)
    assert kills >= 4


@fork
@pytest.mark.parametrize('count', range(4))
def test_killed_while_results_are_written(whole, tmp_path, count, monkeypatch):
    model, data, out = whole
    renamed = []
    def replace_or_die(a, b):
        if len(renamed) == count: os.kill(os.getpid(), signal.SIGKILL)
        renamed.append(b)
        os.rename(a, b)
    monkeypatch.setattr(os, 'replace', replace_or_die)
    process = start(lambda: evaluate(model, data, tmp_path/'out'))
    process.join()
    monkeypatch.undo()
    assert process.exitcode == -signal.SIGKILL and len(contents(tmp_path/'out')) == count + 2      # one is half done
    calls = []
    evaluate(model, data, tmp_path/'out', resume=True, progress=lambda *n: calls.append(n))
    assert contents(tmp_path/'out') == contents(out) and calls == [(6, 6)]


def test_torn_anywhere(whole, tmp_path):
    "A journal that ends at any byte goes on after its last whole line."
    model, data, out = whole
    journal = (out/'clips.jsonl').read_bytes()
    header, names, path = json.loads(journal.splitlines()[0]), [c.name for c in data.entries], tmp_path/'clips.jsonl'
    for at in range(0, len(journal) + 1, 7):
        path.write_bytes(journal[:at])
        done = ev.begin(path, header, names)
        assert len(done) == max(0, journal[:at].count(b'\n') - 1)
        assert path.read_bytes() == journal[:max(journal.index(b'\n'), journal[:at].rfind(b'\n')) + 1]
    for at in (0, 50, len(journal) // 2, len(journal) - 1, len(journal)):
        folder = tmp_path/str(at)
        folder.mkdir()
        (folder/'clips.jsonl').write_bytes(journal[:at])
        evaluate(model, data, folder, resume=True, workers=at % 2)
        assert contents(folder) == contents(out)


def test_resume_without_a_beginning(whole, tmp_path):
    model, data, out = whole
    (tmp_path/'empty').mkdir()
    for name in ('empty', 'new/deep'):
        evaluate(model, data, tmp_path/name, resume=True)
        assert contents(tmp_path/name) == contents(out)


def other(**changes): return lambda model, data: (Little(), Clips([made(i) for i in range(6)])) + (changes,)


def heavier(model):
    model = copy.deepcopy(model)
    with torch.no_grad(): model.loud[0] += 1e-6
    return model


def renamed(model, data): return model, Clips([replace(made(0), name='x'), *data.entries[1:]]), {}


def shorter(model, data): return model, Clips(data.entries[:5]), {}


def split(model, data):
    data = Clips(data.entries)
    data.split = 'val'
    return model, data, {}


@pytest.mark.parametrize('change, says', [
    (other(limit=3), 'limit was null, is 3'), (other(size=64), 'size was 32, is 64'), (renamed, 'names was'), (shorter, 'clips was 6, is 5'),
    (split, 'split was "test", is "val"'), (lambda m, d: (Little(layers=2), d, {}), 'config.layers was 6, is 2'),
    (lambda m, d: (heavier(m), d, {}), r'\(weights was "[0-9a-f]{39}, is "[0-9a-f]{39}\)')])
def test_resume_of_something_else(whole, tmp_path, change, says):
    model, data, out = whole
    journal = (out/'clips.jsonl').read_bytes()
    (tmp_path/'clips.jsonl').write_bytes(journal[:-30])
    with pytest.raises(ValueError, match=says):
        model, data, changes = change(model, data)
        evaluate(model, data, tmp_path, resume=True, **changes)
    assert contents(tmp_path) == {'clips.jsonl': journal[:-30]}


@pytest.mark.parametrize('versions', [dict(torch='1.0'), dict(ppqg_nb='0.0.1')])
def test_resume_with_other_versions(whole, tmp_path, versions):
    model, data, out = whole
    header, *rest = (out/'clips.jsonl').read_text().splitlines(keepends=True)
    header = json.loads(header)
    header['versions'] |= versions
    (tmp_path/'clips.jsonl').write_text(json.dumps(header) + '\n' + ''.join(rest))
    with pytest.raises(ValueError, match=f'versions.{next(iter(versions))} was'): evaluate(model, data, tmp_path, resume=True)


@pytest.mark.parametrize('damage, says', [
    (lambda lines: lines[:2] + [b'{"name": \n'] + lines[2:], 'Line 3 of .* is damaged'), (lambda lines: lines[:1] + [b'7\n'], 'Line 2 of .* is damaged'),
    (lambda lines: [lines[0], lines[2], lines[1]], 'not those of the data set in order'), (lambda lines: lines + lines[1:2], 'not those of the data set'),
    (lambda lines: lines[1:], 'holds another evaluation')])
def test_damaged_journal(whole, tmp_path, damage, says):
    model, data, out = whole
    (tmp_path/'clips.jsonl').write_bytes(b''.join(damage((out/'clips.jsonl').read_bytes().splitlines(keepends=True))))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=says): evaluate(model, data, tmp_path, resume=True)
    assert contents(tmp_path) == before


class Broken(Clips):
    "Clip 3 cannot be read."
    error = ValueError('its sound is cut off.')
    def __getitem__(self, i):
        if i == 3: raise self.error
        return super().__getitem__(i)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('error, says', [(ValueError('its sound is cut off.'), '^Clip clip-3: its sound is cut off.$'),
                                         (ValueError('Clip clip-3: x.png is missing.'), '^Clip clip-3: x.png is missing.$'),
                                         (KeyError('frames'), "^Clip clip-3: KeyError: 'frames'$")])
def test_a_clip_that_cannot_be_read(whole, tmp_path, workers, error, says):
    model, data, out = whole
    broken = Broken(data.entries)
    broken.error = error
    with pytest.raises(ValueError, match=says): evaluate(model, broken, tmp_path/'out', workers=workers)
    lines = (out/'clips.jsonl').read_bytes().splitlines(keepends=True)
    assert contents(tmp_path/'out') == {'clips.jsonl': b''.join(lines[:4])}
    evaluate(model, data, tmp_path/'out', resume=True)
    assert contents(tmp_path/'out') == contents(out)


def test_clips_that_cannot_be_scored(tmp_path):
    c = made(0)
    with pytest.raises(ValueError, match='^Clip clip-0: target has values from 0 to 9; labels must lie between 0 and 2.$'):
        evaluate(Little(), Clips([replace(c, labels=c.labels.where(c.labels != 2, 9))]), tmp_path/'a')
    sick = Little()
    with torch.no_grad(): sick.mix.fill_(torch.nan)
    with pytest.raises(ValueError, match='^Clip clip-0: pred has values that are not finite'): evaluate(sick, Clips([c]), tmp_path/'b')


# before any work

@pytest.mark.parametrize('model, data, how, says', [
    (dict(classes=BINARY_CLASSES), lambda: Clips([made(0)], classes=AVSS_CLASSES), {}, 'weights for s4 or ms3 .2 classes.*the data is avss'),
    (dict(classes=AVSS_CLASSES), lambda: binary(1, 's4'), {}, 'weights for avss .71 classes.*the data is s4'),
    (dict(classes=WORDS), lambda: Clips([made(0)], classes=('background', 'bell', 'dog')), {}, r'background, bell, bird\), and .*background, bell, dog'),
    (dict(regions=True), lambda: Clips([made(0)]), {}, 'reads region maps, and the clips have none'),
    ({}, lambda: Clips([]), {}, 'The data set is empty'), ({}, lambda: Clips([made(0)], task='s5'), {}, "The task is 's5'"),
    ({}, lambda: [made(0)], {}, 'The data set has no task'), ({}, lambda: Clips([made(0)]), dict(limit=0), 'limit is 0'),
    ({}, lambda: Clips([made(0)]), dict(limit=-3), 'limit is -3'), ({}, lambda: Clips([made(0)]), dict(workers=-1), 'workers is -1'),
    ({}, lambda: Clips([made(0)]), dict(size=31), 'size is 31')])
def test_bad_input_is_said_before_any_work(tmp_path, model, data, how, says):
    with pytest.raises(ValueError, match=says) as e: evaluate(Little(**model), data(), tmp_path/'out', **how)
    assert '\n' not in str(e.value) and not (tmp_path/'out').exists()


def test_folders_that_do_not_do(whole, tmp_path):
    model, data, out = whole
    (tmp_path/'file').write_text('x')
    with pytest.raises(ValueError, match='is a file'): evaluate(model, data, tmp_path/'file')
    with pytest.raises(ValueError, match='cannot be made'): evaluate(model, data, tmp_path/'file'/'out')
    before = contents(out)
    with pytest.raises(ValueError, match='is not empty; name another folder, or pass resume=True'): evaluate(model, data, out)
    assert contents(out) == before
    with pytest.raises(ValueError, match='holds files, but no clips.jsonl'): evaluate(model, data, tmp_path, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_data_sets_without_entries(tmp_path):
    class Plain:
        task, split, classes = 'avss', 'test', WORDS
        def __len__(self): return 2
        def __getitem__(self, i): return made(i, name='')
    evaluate(Little(), Plain(), tmp_path/'out')
    assert [r['name'] for r in table(tmp_path/'out'/'per_clip.csv')] == ['number-1', 'number-2']
