"Many films in one run: killed, changed, shared out; nothing is lost, nothing half done, nothing of others touched."
import csv
import functools
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from ppqg_nb import folders
from ppqg_nb.folders import (FolderManifest, find_media, in_shard, load_segmenter, output_name, read_lines,
                             segment_all, with_ray)
from ppqg_nb.outputs import SUFFIXES
from ppqg_nb.segmenter import Segmenter
from test_segmenter import Fake, clip

KINDS = dict(overlay='.mp4', csv='.csv', labels='')
HARD = ('plain.mp4', "it's a \"film\".mp4", 'bell 🔔 ü.mkv', 'line\nend.mp4', 'a folder/plain.mp4', 'plain.mkv', '#1 [x]*.mp4')
forks = pytest.mark.skipif(not hasattr(os, 'fork'), reason='a run is forked here to be killed')


class Small(torch.nn.Module):
    "The model `Fake`, with a weight; where the picture is white its process is killed, once or always."
    config = Fake.config

    def __init__(self, weight=1., fatal=None):
        super().__init__()
        self.weight, self.fatal = torch.nn.Parameter(torch.tensor(weight), requires_grad=False), fatal

    def compose(self, pred): return pred

    def forward(self, frames, patches, every_layer=True):
        if self.fatal and frames.min() > .9: os.kill(os.getpid(), signal.SIGKILL)
        return Fake()(frames, patches) * self.weight


def small(weight=1., fatal=None): return Segmenter(Small(weight, fatal))


def tree(folder):
    "Bytes of all results by name; of what is hidden, only that it is there."
    def hidden(p): return any(part[0] == '.' for part in p.relative_to(folder).parts)
    return {p.relative_to(folder).as_posix(): b'' if hidden(p) else p.read_bytes() for p in sorted(folder.rglob('*'))
            if p.is_file() and p.suffix not in ('.jsonl', '.lock')}


def lines(out): return [line for path in sorted(out.glob('manifest*.jsonl')) for line in read_lines(path)]


@pytest.fixture(scope='session')
def made(tmp_path_factory):
    "Good films with hard names, and bad ones among them."
    folder = tmp_path_factory.mktemp('films')
    for n, name in enumerate(HARD):
        (folder/name).parent.mkdir(exist_ok=True)
        clip(folder/f'{n}.mp4', times=tuple(i / 10 for i in range(3 + n % 3)))
        (folder/f'{n}.mp4').rename(folder/name)
    (folder/'empty.mp4').touch()
    (folder/'noise.mp4').write_bytes(random.Random(0).randbytes(5000))
    (folder/'gone.mp4').symlink_to(folder/'nowhere')
    clip(folder/'silent.mp4', sound=False)
    cut = (folder/'plain.mp4').read_bytes()
    (folder/'cut.mp4').write_bytes(cut[:len(cut) // 2])
    return folder


BAD = {'cut.mp4', 'empty.mp4', 'gone.mp4', 'noise.mp4', 'silent.mp4'}


@pytest.fixture
def films(made, tmp_path): return Path(shutil.copytree(made, tmp_path/'films', symlinks=True))


run = functools.partial(segment_all, make=small, kinds=KINDS)


@pytest.fixture(scope='session')
def whole(made, tmp_path_factory):
    "What an unbroken run gives."
    out = tmp_path_factory.mktemp('whole')/'out'
    summary = run([made], out)
    assert sorted(summary.done) == sorted(HARD) and set(summary.failed) == BAD and summary.code == 1
    return tree(out)


def test_results_of_good_films_and_sentences_for_bad_ones(films, whole, tmp_path):
    seen = []
    summary = run([films], tmp_path/'out', seen=lambda line, n, total: seen.append((line['film'], line['state'], n, total)))
    assert tree(tmp_path/'out') == whole
    assert {n for n in whole if '.labels/' not in n} == {output_name(n, k, KINDS[k]) for n in HARD for k in ('overlay', 'csv')}
    assert [x[2:] for x in seen] == [(n, 12) for n in range(1, 13)] and {x[0] for x in seen} == set(HARD) | BAD
    text = summary.text().splitlines()
    assert text[0] == '7 done, 0 skipped, 5 failed' and len(text) == 6
    assert all(why.count('\n') == 0 and why.endswith('.') for why in summary.failed.values())
    assert json.loads(json.dumps(summary.to_dict()))['failed'].keys() == BAD
    done = [line for line in lines(tmp_path/'out') if line.get('state') == 'done']
    for line in done: assert line['bytes'] == (films/line['film']).stat().st_size and line['frames'] in (3, 4, 5)
    with open(tmp_path/'out'/'plain.mp4.csv', newline='') as f: assert list(csv.DictReader(f))[0]['name'] == 'warm'


def test_again_there_is_nothing_to_do_and_what_failed_is_tried_again(films, whole, tmp_path):
    run([films], out := tmp_path/'out')
    before = {p: p.stat().st_mtime_ns for p in out.rglob('*.mp4')}
    (films/'gone.mp4').unlink()
    shutil.copy(films/'plain.mp4', films/'gone.mp4')
    again = run([films], out, resume=True)
    assert again.done == ['gone.mp4'] and sorted(again.skipped) == sorted(HARD) and set(again.failed) == BAD - {'gone.mp4'}
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_what_changed_is_made_again(films, tmp_path):
    run([films], out := tmp_path/'out')
    stamp = (films/'plain.mp4').stat()
    clip(films/'plain.mp4', times=(0, .1))
    data = (films/'plain.mkv').read_bytes()
    (films/'plain.mkv').write_bytes(data)                                              # touched, the same
    os.utime(films/'plain.mp4', ns=(stamp.st_atime_ns, stamp.st_mtime_ns))             # changed, with its old time
    (out/'a folder'/'plain.mp4.csv').unlink()
    (out/'line\nend.mp4.labels'/'000001.png').write_bytes(b'')
    assert sorted(run([films], out, resume=True).done) == ['a folder/plain.mp4', 'line\nend.mp4', 'plain.mp4']
    run([films], tmp_path/'fresh')
    assert tree(out) == tree(tmp_path/'fresh') and len(list((out/'plain.mp4.labels').iterdir())) == 2
    for change in (dict(settings=dict(fps=1)), dict(make=functools.partial(small, 2.)), dict(about=dict(regions='classic'))):
        assert len(run([films], out, resume=True, **change).done) == len(HARD)
        assert len(run([films], out, resume=True, **change).skipped) == len(HARD)


def test_other_kinds_are_added_and_those_that_are_there_stay(films, whole, tmp_path):
    out = tmp_path/'out'
    for kind in KINDS: assert len(run([films], out, kinds={kind: KINDS[kind]}, resume=True).done) == len(HARD)
    assert tree(out) == whole and len(run([films], out, resume=True).skipped) == len(HARD)


@forks
def test_killed_at_random_it_gives_what_an_unbroken_run_gives(films, whole, tmp_path):
    "SIGKILL at a random time, again and again, until a run comes to its end."
    out, dice, deaths = tmp_path/'out', random.Random(3), 0
    start = time.perf_counter()
    run([films], tmp_path/'other')
    long = time.perf_counter() - start
    for most in [long / 3] * 8 + [long] * 20 + [300]:
        pid = os.fork()
        if not pid:
            try: os._exit(run([films], out, resume=True).code)
            finally: os._exit(9)
        stop = time.perf_counter() + dice.uniform(0, most)
        while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.perf_counter() < stop: time.sleep(.002)
        if ended[0]: break
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        deaths += 1
        for name, data in tree(out).items():        # all that has a name is whole
            if not any(part[0] == '.' for part in Path(name).parts): assert data == whole[name], name
    assert deaths >= 5 and ended[1] == 256          # exit code 1: five are bad
    assert tree(out) == whole and len(run([films], out, resume=True).skipped) == len(HARD)


class Killed(BaseException): "What nothing catches."


@pytest.mark.parametrize('point', range(0, 41, 7))
def test_killed_before_a_line_or_rename(films, whole, tmp_path, monkeypatch, point):
    out, left = tmp_path/'out', [point]
    write, rename = FolderManifest.write, os.replace
    def count():
        left[0] -= 1
        if left[0] < 0: raise Killed
    def writes(self, **line):
        try: count()
        except Killed:
            with open(self.path, 'ab') as f: f.write(b'{"film": "pl')
            raise
        return write(self, **line)
    def renames(a, b):
        if Path(a).parent != Path(b).parent: count()
        return rename(a, b)
    monkeypatch.setattr(FolderManifest, 'write', writes)
    monkeypatch.setattr(os, 'replace', renames)
    try: run([films], out)
    except Killed: pass
    monkeypatch.undo()
    run([films], out, resume=True)
    assert tree(out) == whole


def test_interrupted_nothing_half_is_left(films, whole, tmp_path):
    def impatient(line, n, total):
        if n == 4: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run([films], out := tmp_path/'out', seen=impatient)
    assert 0 < len(tree(out)) < len(whole) and tree(out).items() <= whole.items()
    run([films], out, resume=True)
    assert tree(out) == whole


def test_shares(films, whole, tmp_path):
    for i in (3, 1, 2): run([films], tmp_path/'out', shard=f'{i}/3')       # no share needs --resume
    assert tree(tmp_path/'out') == whole
    done = [line['film'] for line in lines(tmp_path/'out') if line.get('state') == 'done']
    assert sorted(done) == sorted(HARD)
    assert len(list((tmp_path/'out').glob('manifest-?-of-3.jsonl'))) == 3
    assert len(run([films], tmp_path/'out', resume=True).skipped) == len(HARD)         # the whole reads what shares wrote
    for shard in ('0/2', '3/2', '2', 'a/b', '1/2/3'):
        with pytest.raises(ValueError, match='must be i/n'): run([films], tmp_path/'no', shard=shard)


def test_a_share_is_of_the_name_and_all_of_them_are_everything():
    names = [f'{n}/é {n * n}.mp4' for n in range(500)]
    for n in (1, 2, 7):
        assert [sum(in_shard(name, i, n) for i in range(1, n + 1)) for name in names] == [1] * 500
    counts = [sum(in_shard(name, i, 7) for name in names) for i in range(1, 8)]
    assert min(counts) > 45 and [in_shard('a.mp4', i, 3) for i in (1, 2, 3)] == [False, True, False]


def test_processes_give_the_same_bytes_and_one_that_dies_costs_its_film(films, whole, tmp_path):
    import numpy as np
    from clips import noise, save
    white = np.full((48, 64, 3), 255, np.uint8)
    save(films/'fatal.mp4', [0, .1], [white, white], noise()[:, :44100])
    out = tmp_path/'out'
    summary = run([films], out, make=functools.partial(small, fatal=True), jobs=2)
    assert set(summary.failed) == BAD | {'fatal.mp4'} and sorted(summary.done) == sorted(HARD)
    assert 'died' in summary.failed['fatal.mp4'] and tree(out) == whole


@forks
def test_processes_end_with_the_one_that_started_them(films, whole, tmp_path):
    "A run with two processes is killed; they go too, and the next run finds nothing in its way."
    out = tmp_path/'out'
    pid = os.fork()
    if not pid:
        try: run([films], out, jobs=2)
        finally: os._exit(9)
    def children(): return [p for p in Path('/proc').glob('[0-9]*/stat') if alive(p, pid)]
    def alive(p, parent):
        try: return p.read_text().rsplit(')', 1)[1].split()[1] == str(parent)
        except OSError: return False
    if not Path('/proc/self/stat').exists():
        os.kill(pid, signal.SIGKILL)
        pytest.skip('no list of processes in /proc')
    until(lambda: list(out.glob('*.csv')))
    mine = [int(p.parent.name) for p in children()]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(mine) >= 2
    until(lambda: not any(Path(f'/proc/{p}').exists() for p in mine))
    run([films], out, resume=True)
    assert tree(out) == whole


def until(true, seconds=120):
    stop = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < stop, 'it did not come to that'
        time.sleep(.05)


def test_without_resume_a_folder_with_results_is_left_alone(films, tmp_path):
    (films/'x.mp4').touch()
    run([films/'plain.mp4'], out := tmp_path/'out')
    before = tree(out), lines(out)
    with pytest.raises(ValueError, match='pass --resume'): run([films], out)
    with pytest.raises(ValueError, match='pass --resume'): run([films], out, shard='1/2')
    with FolderManifest(out).opened(True), pytest.raises(ValueError, match='Another run'): run([films], out, resume=True)
    assert (tree(out), lines(out)) == before


def test_what_others_put_there_is_left_alone(films, tmp_path):
    (out := tmp_path/'out').mkdir()
    (out/'plain.mp4.csv').write_text('mine')
    (out/'plain.mkv.labels').mkdir()
    (out/'a folder').write_text('in the way')
    summary = run([films], out)
    assert {'plain.mp4', 'plain.mkv', 'a folder/plain.mp4'} | BAD == set(summary.failed)
    assert 'was not made by this command' in summary.failed['plain.mp4'] and (out/'plain.mp4.csv').read_text() == 'mine'
    assert not (out/'plain.mp4.overlay.mp4').exists() and not list((out/'plain.mkv.labels').iterdir())
    (out/'plain.mp4.csv').unlink()
    assert run([films], out, resume=True).done == ['plain.mp4']


def test_a_film_that_grows_while_it_is_read_fails(films, tmp_path):
    def growing():
        with open(films/'plain.mp4', 'ab') as f: f.write(b'more')
        return small()
    worker = folders.Worker(growing, KINDS, {}, tmp_path)
    assert 'changed while it was read' in worker(dict(path=str(films/'plain.mp4'), known=None))['error']


def test_damaged_manifest(films, tmp_path):
    run([films/'plain.mp4'], out := tmp_path/'out')
    with open(out/'manifest.jsonl', 'ab') as f: f.write(b'\0\0\0{"no end')
    assert run([films/'plain.mp4'], out, resume=True).skipped == ['plain.mp4']
    (out/'manifest.jsonl').write_bytes(b'{"film": \n' + (out/'manifest.jsonl').read_bytes())
    with pytest.raises(ValueError, match='damaged in line 1'): run([films/'plain.mp4'], out, resume=True)


def names(*given, out='/nowhere/out'): return [film.name for film in find_media(given, out)]


def test_find(films, tmp_path):
    good = sorted(HARD + tuple(BAD), key=lambda n: ('/' in n, n))
    assert names(films) == good == names(f'{films}/') == names(films, films/'plain.mp4', films/'a folder'/'..')
    assert names(films/'*.mkv') == ['bell 🔔 ü.mkv', 'plain.mkv'] and names(films/'**'/'p*.mp4') == ['a folder/plain.mp4', 'plain.mp4']
    assert names(films/'#1 [x]*.mp4') == ['#1 [x]*.mp4']           # a name before it is a pattern
    (films/'.cache').mkdir()
    shutil.copy(films/'plain.mp4', films/'.cache'/'b.mp4')
    shutil.copy(films/'plain.mp4', films/'.plain.1.part.mp4')
    assert names(films) == good and names(films/'**'/'*.mp4', films/'*'/'*.mp4') == names(films/'**'/'*.mp4')
    (films/'notes.doc').touch()
    (films/'a folder'/'up').symlink_to(films)                        # a loop
    (films/'self').symlink_to(films/'self')
    assert names(films) == good and len(names(films/'**'/'*.mp4')) == len([n for n in good if n.endswith('.mp4')])
    with pytest.raises(ValueError, match='holds no film'): names(films/'*'/'*'/'*.mp4')       # all behind the link


def test_lists(films, tmp_path):
    other = clip(tmp_path/'other.mp4')
    (films/'list.txt').write_text(f'\ufeff# a comment\r\nplain.mp4\r\n\r\na folder/plain.mp4\n./#1 [x]*.mp4\n{other}\n../other.mp4\nno.mp4', 'utf-8')
    found = find_media([films/'list.txt'], tmp_path/'out')
    assert [f.name for f in found] == ['plain.mp4', 'a folder/plain.mp4', '#1 [x]*.mp4', other.as_posix().lstrip('/'), 'no.mp4']
    assert all('..' not in Path(f.name).parts and not Path(f.name).is_absolute() for f in found)
    summary = run([films/'list.txt'], tmp_path/'out')
    assert len(summary.done) == 4 and 'There is no file' in summary.failed['no.mp4']
    assert {p.name for p in tmp_path.iterdir()} == {'films', 'other.mp4', 'out'}
    (films/'list.txt').write_bytes(b'\xff\xfe\n')
    with pytest.raises(ValueError, match='no list in UTF-8'): names(films/'list.txt')
    (films/'list.txt').write_text('# nothing\n')
    with pytest.raises(ValueError, match='holds no film'): names(films/'list.txt')


def test_what_cannot_be_found_is_said_before_any_work(films, tmp_path):
    (tmp_path/'bare').mkdir()
    for given, out, why in (([films/'no'], 'out', 'There is no file or folder'), ([films/'*.avi'], 'out', 'holds no film'),
                            ([tmp_path/'bare'], 'out', 'holds no film'), ([films], 'films', 'would lie among the films'),
                            ([films], '.', 'would lie among'), ([films/'*.mp4'], '.', 'would lie among'),
                            ([films/'plain.mp4', films/'a folder'/'plain.mp4'], 'out', 'of one name')):
        with pytest.raises(ValueError, match=why): run(given, tmp_path/out)
    for wrong in (dict(kinds=dict(overlay='.avi')), dict(kinds=dict(film='.mp4')), dict(jobs=0)):
        with pytest.raises(ValueError): run([films], tmp_path/'out', **wrong)
    assert {p.name for p in tmp_path.iterdir()} == {'films', 'bare'} and 'manifest.jsonl' not in os.listdir(films)


def test_folder_of_results_in_the_folder_of_films(films, whole):
    for resume in (False, True): summary = run([films], films/'results', resume=resume)
    assert len(summary.skipped) == len(HARD) and tree(films/'results') == whole
    assert names(films/'**'/'*.mp4', out=films/'results') == names(films/'*.mp4', films/'*'/'*.mp4', out=films/'results')[:0] + \
        sorted(n for n in HARD + tuple(BAD) if n.endswith('.mp4'))


def test_a_name_too_long_for_its_outputs_leaves_none_of_them(films, tmp_path):
    "Its table and label maps would have a name of 248 and 251 bytes, its overlay one of 256."
    long = 'x' * 240 + '.mp4'
    (films/'plain.mp4').rename(films/long)
    summary = run([films/long], tmp_path/'out', kinds=dict(csv='.csv', overlay='.mp4', labels=''))
    assert list(summary.failed) == [long] and tree(tmp_path/'out') == {}


@pytest.mark.skipif(sys.platform != 'linux', reason='names that are not UTF-8')
def test_a_name_that_is_not_utf8(films, tmp_path):
    (films/'plain.mp4').rename(films/os.fsdecode(b'\xff.mp4'))
    summary = run([films], tmp_path/'out')
    assert len(summary.done) == len(HARD) and (tmp_path/'out'/os.fsdecode(b'\xff.mp4.csv')).exists()
    assert len(run([films], tmp_path/'out', resume=True).skipped) == len(HARD)
    run([films/'noise.mp4'], tmp_path/'two').text().encode()


def test_names_of_outputs_are_of_one_film_and_kind():
    films, first = ('a', 'a.mp4', 'a.mp4.csv', 'a.mp4.overlay.mp4', 'a.labels'), {k: (s or ('',))[0] for k, s in SUFFIXES.items()}
    found = [output_name(f, kind, suffix) for f in films for kind, suffix in first.items()]
    assert len(set(found)) == len(found) == len(films) * len(SUFFIXES)


def test_the_model_that_ships_on_one_thread_or_two(made, tmp_path):
    "The number of threads of this process changes no byte, and is as it was afterwards."
    for n in (1, 2):
        torch.set_num_threads(n)
        run([made/'plain.mp4'], tmp_path/str(n), make=load_segmenter, kinds=dict(labels='', coco='.json', csv='.csv'))
        assert torch.get_num_threads() == n
    assert tree(tmp_path/'1') == tree(tmp_path/'2')
