"A run: killed anywhere and gone on with, on a full disk, with a damaged state, in two processes; bad recipes."
import csv, json, math, os, random, signal, subprocess, sys, time
from dataclasses import replace
import pytest, torch
from safetensors.torch import load_file
from ppqg_nb import runs
from ppqg_nb.core import BINARY_CLASSES
from ppqg_nb.making import SEEDS, write_set
from ppqg_nb.runs import Recipe, read_recipe, train
from ppqg_nb.scenes import CLASSES, Scenes
from ppqg_nb.vct import VCT

CONFIG = dict(image_size=32, backbone='test_resnet', hidden=16, pixel_mlp=[16], pixel_layers=1, pixel_ffn=16, num_queries=4,
              layers=2, heads=2, ffn=16, vggish_width=.1, levels=['audio', 'V4'])
TINY = dict(config=CONFIG, data=['scenes'], backbone='', steps=8, batch=2, dubs=2, log=3, save=2, validate=4, clips=2,
            workers=0, ema=.9, apart=.25)
SCRIPT = '''
import json, sys, torch
from ppqg_nb import runs
torch.set_num_threads(1)
out, fields = sys.argv[1], json.loads(sys.argv[2])
runs.train(runs.read_recipe('scenes-tiny', **fields), out, resume=True, say=lambda s: print(s, file=sys.stderr),
           progress=lambda step, steps, values: print(step, flush=True))
'''


def recipe(**changes): return read_recipe('scenes-tiny', **{**TINY, **changes})


def same(a, b):
    "Two folders of finished runs have the same weights, tables and best model, to the bit"
    for name in ('last', 'best'):
        x, y = (load_file(p / name / 'model.safetensors') for p in (a, b))
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
    assert (a / 'scores.csv').read_text() == (b / 'scores.csv').read_text()
    rows = [[{k: v for k, v in row.items() if k != 'seconds'} for row in csv.DictReader(open(p / 'log.csv'))] for p in (a, b)]
    assert rows[0] == rows[1] and len(rows[0]) == 3


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp('run') / 'unbroken'
    train(recipe(), out)
    return out


def test_leaves(unbroken):
    "What a finished run leaves: the recipe with what it ran with, tables, sheets, two states, two models, nothing half-written."
    found = json.loads((unbroken / 'run.json').read_text())
    assert Recipe(**found['recipe']) == recipe() and set(found['versions']) >= {'torch', 'timm'} and found['processes'] == 1
    assert sorted(p.name for p in unbroken.iterdir() if p.name != 'tensorboard') == [
        'best', 'last', 'log.csv', 'run.json', 'scores.csv', 'sheets', 'state']
    assert [p.name[:7] for p in sorted((unbroken / 'state').iterdir())] == ['0000006', '0000008']
    assert [p.name for p in sorted((unbroken / 'sheets').iterdir())] == ['0000004.png', '0000008.png']
    assert any((unbroken / 'tensorboard').iterdir())
    assert 'objects' not in ''.join(load_file(unbroken / 'last' / 'model.safetensors'))      # the auxiliary head is dropped
    assert runs.read_recipe(unbroken / 'run.json') == recipe()


def run_killed(out, when, fields):
    "Run in a process of its own and kill -9 it: after a step `when[0]`, and `when[1]` seconds; gives whether it had ended"
    process = subprocess.Popen([sys.executable, '-c', SCRIPT, str(out), json.dumps(fields)], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, 'OMP_NUM_THREADS': '1'})
    for line in process.stdout:
        if int(line) == when[0]:
            time.sleep(when[1])
            process.kill()
            break
    process.stdout.close()
    return process.wait() == 0


@pytest.mark.parametrize('seed', range(3))
def test_killed(unbroken, tmp_path, seed):
    "Killed three times at random, with other numbers of reading processes, it ends as the unbroken run does, to the bit."
    draws, out = random.Random(seed), tmp_path / 'run'
    for k in range(3): run_killed(out, (draws.randint(1, 3), draws.uniform(0, .4)), {**TINY, 'workers': 0})
    train(recipe(), out, resume=True, say=lambda s: None)
    same(unbroken, out)


def test_workers(unbroken, tmp_path):
    "Examples made by two processes are the same examples."
    train(recipe(workers=2), tmp_path / 'run')
    same(unbroken, tmp_path / 'run')


def test_interrupted(unbroken, tmp_path):
    "Ctrl-C ends the step, saves, and says so; the run goes on from there."
    def press(step, steps, values):
        if step == 3: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match='Stopped by SIGINT after step 3, and saved'):
        train(recipe(), tmp_path / 'run', progress=press)
    seen = []
    train(recipe(), tmp_path / 'run', resume=True, progress=lambda step, steps, values: seen.append(step))
    assert seen == [4, 5, 6, 7, 8]
    same(unbroken, tmp_path / 'run')


@pytest.mark.parametrize('damage', (lambda b: b[:-7], lambda b: b[:999] + bytes([b[999] ^ 1]) + b[1000:], lambda b: b''))
def test_damaged(unbroken, tmp_path, damage):
    "A damaged last state is named, and the one before is used."
    def press(step, steps, values):
        if step == 6: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): train(recipe(), tmp_path / 'run', progress=press)
    last = sorted((tmp_path / 'run' / 'state').iterdir())[-1]
    last.write_bytes(damage(last.read_bytes()))
    seen, said = [], []
    train(recipe(), tmp_path / 'run', resume=True, progress=lambda step, steps, values: seen.append(step), say=said.append)
    assert seen[0] == 5 and len(said) == 1 and last.name in said[0] and 'the one before is used' in said[0]
    same(unbroken, tmp_path / 'run')


def test_full_disk(unbroken, tmp_path, monkeypatch):
    "A state that the disk does not take is said; training goes on, the state before stays, nothing is half-written."
    save, said = torch.save, []
    def full(state, path):
        if state['step'] == 6:
            with open(path, 'wb') as f: f.write(b'half')
            raise OSError(28, 'No space left on device')
        save(state, path)
    monkeypatch.setattr(torch, 'save', full)
    train(recipe(), tmp_path / 'run', say=said.append)
    assert len(said) == 1 and 'The state of step 6 could not be written' in said[0] and 'No space left' in said[0]
    assert [p.name[:7] for p in sorted((tmp_path / 'run' / 'state').iterdir())] == ['0000004', '0000008']
    same(unbroken, tmp_path / 'run')


def test_not_finite(tmp_path, monkeypatch):
    "A clip whose sound is not a number ends the run with its name, and the state before stays."
    make = runs.scenes.dubs
    def broken(seed, n, *rest):
        made = make(seed, n, *rest)
        return [replace(s, patches=s.patches * math.nan) if n == 7 and s is made[1] else s for s in made]
    monkeypatch.setattr(runs.scenes, 'dubs', broken)
    name = make(0, 7, 'mixed', 2, 32, 1)[1].name
    with pytest.raises(ValueError, match=f'Step 4 fails with {name}: The prediction holds NaN'):
        train(recipe(apart=0, clip=0), tmp_path / 'run')
    with pytest.raises(ValueError, match=f'Step 4 fails with {name}: the loss is not finite'):
        train(recipe(apart=.9), tmp_path / 'apart')
    assert [p.name[:7] for p in (tmp_path / 'run' / 'state').iterdir()] == ['0000002']


def test_two_processes(tmp_path):
    "Two gloo processes validate together, write once, and go on after a stop; their models are one."
    fields, command = {**TINY, 'steps': 4, 'config': {**CONFIG, 'backbone': 'test_convnext'}}, [
        sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_port=0', '--rdzv-backend=c10d',
        '--rdzv-endpoint=localhost:0']
    script = tmp_path / 'run.py'
    env = {**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    def run(text):
        script.write_text(text)
        return subprocess.run([*command, str(script), str(tmp_path / 'run'), json.dumps(fields)], env=env, capture_output=True,
                              text=True, timeout=200)
    # a new folder, without resume; then Ctrl-C reaches the second process only, in the second step: both stop there
    stop = """
import os, signal
def learn(self, parts, learn=runs.Run.learn):
    if self.step == 1 and self.shard[0] == 1: os.kill(os.getpid(), signal.SIGINT)
    return learn(self, parts)
runs.Run.learn = learn
"""
    done = run(SCRIPT.replace('resume=True', 'resume=False').replace('torch.set', stop + 'torch.set'))
    assert done.returncode != 0 and 'Stopped by SIGINT after step 2' in done.stderr, done.stderr
    assert 'Stopped by another process after step 2' in done.stderr and 'is not empty' not in done.stderr
    assert [p.name[:7] for p in (tmp_path / 'run' / 'state').iterdir()] == ['0000002']
    done = run(SCRIPT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ['3', '4']                                            # one process tells of it
    assert json.loads((tmp_path / 'run' / 'run.json').read_text())['processes'] == 2
    assert len(list(csv.DictReader(open(tmp_path / 'run' / 'log.csv')))) == 2
    assert len(list(csv.DictReader(open(tmp_path / 'run' / 'scores.csv')))) == 1


@pytest.fixture(scope='module')
def benchmark(tmp_path_factory):
    "A folder in the layout of AVSBench with a few scenes to train on and to validate on."
    out = tmp_path_factory.mktemp('set') / 'set'
    for split in ('train', 'val'): write_set(out, Scenes(SEEDS[split], size=64, length=3), 'avss', split)
    return str(out)


MS3 = {**CONFIG, 'classes': BINARY_CLASSES, 'sounds': [], 'prototypes': 'none', 'queries': 'group'}
S4 = {**CONFIG, 'classes': BINARY_CLASSES, 'sounds': CLASSES[1:]}
SHORT = dict(steps=2, save=2, validate=2, apart=0)


@pytest.mark.parametrize('changes', (
    dict(precision='bf16'), dict(accumulate=2, batch=4), dict(checkpointing=True), dict(schedule='one-cycle'), dict(schedule='poly', clip=0),
    dict(ema=0, metric='F'), dict(color=.5), dict(seconds=3), dict(config=MS3, task='ms3'), dict(config=S4, task='s4', kind='single'),
    dict(data='benchmark', auxiliary=0), dict(data='benchmark', auxiliary=0, config={**CONFIG, 'regions': True}, regions='classic'),
    dict(weights='a folder'), dict(config={**CONFIG, 'vggish_frozen': True})), ids=lambda c: '-'.join(map(str, c)))
def test_every_option_trains(unbroken, benchmark, tmp_path, changes):
    "Two steps with each option of a recipe, each task, a benchmark on disk; weights that are to move do."
    if 'weights' in changes: changes = dict(weights=str(unbroken / 'best'))
    if 'data' in changes: changes = {**changes, 'data': [benchmark]}
    run = train(recipe(**{**SHORT, **changes}), tmp_path / 'run')
    assert run.step == 2 and (tmp_path / 'run' / 'best' / 'model.safetensors').is_file()
    first = runs.Run(recipe(**{**SHORT, **changes}), tmp_path / 'none')
    moved = {k for k, a in run.plain.model.named_parameters() if not torch.equal(a, dict(first.plain.model.named_parameters())[k])}
    frozen = {k for k, a in run.plain.model.named_parameters() if not a.requires_grad}
    assert moved and not moved & frozen and any(k.startswith('pyramid.') for k in moved)
    if 'weights' in changes:
        start = load_file(unbroken / 'best' / 'model.safetensors')
        assert all(torch.equal(x, start[k]) for k, x in first.plain.model.state_dict().items())


def test_the_shipped_weights_are_a_start(tmp_path):
    "weights: scenes-tiny is what ships."
    run = runs.Run(read_recipe('scenes-tiny', data=['scenes'], backbone='', weights='scenes-tiny'), tmp_path)
    shipped = VCT.from_pretrained('scenes-tiny').state_dict()
    assert all(torch.equal(x, shipped[k]) for k, x in run.plain.model.state_dict().items())


@pytest.mark.parametrize('changes, sentence', (
    (dict(steps=0), 'steps is 0; it must be at least 1'),
    (dict(lr='fast'), "lr is 'fast'; it must be a finite number"),
    (dict(rate=1e-3), "Recipe has no field 'rate'; the nearest is '"),
    (dict(config=dict(hiden=8)), "Config has no field 'hiden'; the nearest is 'hidden'"),
    (dict(schedule='linear'), "schedule is 'linear'; it must be one of constant, poly"),
    (dict(batch=3, accumulate=2), 'batch is 3, which accumulate=2 does not divide'),
    (dict(ema=1.), 'ema is 1.0; it is a share, below 1'),
    (dict(data=[]), "data is empty; name at least one source"),
    (dict(preset='huge'), "There is no preset 'huge'"),
    (dict(backbone='no_such_package'), 'There is no file no_such_package, and no installed package'),
    (dict(data=['nowhere']), 'There is no folder nowhere'),
    (dict(config={**CONFIG, 'classes': ['background', 'bell']}), "The model has no class 'disc'")))
def test_bad_recipes(tmp_path, changes, sentence):
    "What does not fit is one sentence, before any work."
    with pytest.raises((ValueError, FileNotFoundError), match=sentence): train(recipe(**changes), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_bad_folders(unbroken, tmp_path):
    "A folder with something else in it, another recipe, a file."
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'a.txt').write_text('a')
    with pytest.raises(ValueError, match='is not empty; name another folder'): train(recipe(), tmp_path / 'full')
    with pytest.raises(ValueError, match='holds no run'): train(recipe(), tmp_path / 'full', resume=True)
    with pytest.raises(ValueError, match='is a file'): train(recipe(), tmp_path / 'full' / 'a.txt')
    with pytest.raises(ValueError, match='another recipe .*lr was 0.002, is 0.1'): train(recipe(lr=.1), unbroken, resume=True)


@pytest.mark.parametrize('text, sentence', (('', 'holds no fields'), ('a: [', 'neither JSON nor YAML'), ('steps: many', 'steps is')))
def test_bad_files(tmp_path, text, sentence):
    "A file that is no recipe."
    (tmp_path / 'r.yaml').write_text(text)
    with pytest.raises(ValueError, match=sentence): read_recipe(tmp_path / 'r.yaml')
    with pytest.raises(FileNotFoundError, match='There is no recipe nothing'): read_recipe('nothing')
