"Ablations: variants on equal terms, runs that may be killed anywhere, scores and statistics against a second way."
import json, math, os, subprocess, sys
from dataclasses import replace
import numpy as np, pytest, torch
from scipy import stats
from ppqg_nb import ablations
from ppqg_nb.ablations import (COMPARISONS, MEASURES, VARIANTS, Difference, fingerprint, interval, measured, paired, read_rows,
                               recipe, run_all, run_one, scores, standing, table, test_scenes as scenes_of, verdict, write_rows)
from ppqg_nb.metrics import score
from ppqg_nb.runs import config_of, open_source
from ppqg_nb.scenes import CLASSES
from ppqg_nb.training import Examples, set_seed
from ppqg_nb.vct import VCT

CONFIG = dict(image_size=32, backbone='test_resnet', hidden=16, pixel_mlp=[16], pixel_layers=1, pixel_ffn=16, num_queries=4,
              layers=2, heads=2, ffn=16, vggish_width=.1, levels=['audio', 'V4'])
TINY = dict(backbone='', steps=3, batch=2, dubs=2, save=1, log=1, config=CONFIG)
TWO = dict(seeds=1, variants=['group', 'ppqg-pac'], changes=TINY, clips=3)
SCRIPT = '''
import json, sys, time
from ppqg_nb.ablations import run_all
def progress(*at):
    if ' '.join(map(str, at)) == sys.argv[3]:
        print('now', flush=True)
        time.sleep(600)
run_all(sys.argv[1], **json.loads(sys.argv[2]), progress=progress)
'''


def row(variant='group', seed=0, **scores):
    found = dict.fromkeys(MEASURES, .5) | scores
    return dict(variant=variant, seed=seed, **found, clips=3, steps=3, parameters=9, terms='0123e567', test='00000000', curve=[.5, .25])


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    "The folder of two runs that nothing happened to, and what they told of their progress."
    out, told = tmp_path_factory.mktemp('ablations') / 'unbroken', []
    run_all(out, **TWO, progress=lambda *at: told.append(at))
    return out, told


@pytest.mark.parametrize('variant', VARIANTS)
def test_variant_learns(variant, tmp_path):
    "One step moves the weights of the query generator, and the row says what was done."
    found = run_one(tmp_path, variant, 1, TINY | dict(steps=1), 2)
    r = recipe(variant, 1, TINY | dict(steps=1))
    assert (found['variant'], found['seed'], found['steps'], found['terms']) == (variant, 1, 1, fingerprint(r))
    assert all(0 <= found[m] <= 1 for m in MEASURES) and 0 < found['curve'][0] <= 1
    set_seed(1)
    before, after = VCT(config_of(r)), VCT.from_pretrained(tmp_path / f'{variant}-1' / 'last')
    assert found['parameters'] == sum(p.numel() for p in after.parameters())
    assert any(not torch.equal(x, y) for x, y in zip(before.generator.parameters(), after.generator.parameters()))


def test_ppqg_without_prototypes_is_group():
    config = config_of(recipe('group', 0, TINY))
    models = []
    for queries in ('group', 'ppqg'):
        set_seed(0)
        models.append(VCT(replace(config, queries=queries)).eval())
    x, a = torch.rand(2, 3, 32, 32), torch.randn(2, 96, 64)
    one, other = (m(x, a) for m in models)
    assert torch.equal(one.mask_logits, other.mask_logits) and torch.equal(one.class_logits, other.class_logits)


def test_terms_are_equal():
    "One fingerprint for all variants and seeds, another for any change; one seed, the same data in the same order."
    assert len({fingerprint(recipe(v, s, TINY)) for v in VARIANTS for s in (0, 5)}) == 1
    changes = TINY, TINY | dict(lr=1e-3), TINY | dict(config=CONFIG | dict(ffn=8)), TINY | dict(config=CONFIG | dict(heads=1)), {}
    assert len({fingerprint(recipe('audio', 0, c)) for c in changes}) == 5
    as_json = json.loads(json.dumps(TINY | dict(config=CONFIG | dict(levels=('audio', 'V4')))))
    assert fingerprint(recipe('audio', 0, as_json)) == fingerprint(recipe('audio', 0, TINY))
    def seen(variant, seed):
        r = recipe(variant, seed, TINY)
        examples = Examples([open_source('scenes', r, config_of(r))], CLASSES, seed)
        return [x for n in (0, 7) for clip in examples[n] for x in (clip.frames, clip.patches, clip.labels)]
    assert all(torch.equal(x, y) for x, y in zip(seen('audio', 3), seen('ppqg-pac', 3)))
    assert not torch.equal(seen('audio', 3)[0], seen('audio', 4)[0])


def test_leaves(unbroken):
    "A finished run leaves its row, log and last model, no states; and it is not made again."
    out, told = unbroken
    assert [p.name for p in sorted((out / 'group-0').iterdir())] == ['last', 'log.csv', 'run.json', 'scores.csv']
    assert told == [(v, 0, step, 3) for v in TWO['variants'] for step in (1, 2, 3)]
    def fail(*at): raise AssertionError('a finished run was made again')
    assert run_all(out, **TWO, progress=fail) == read_rows(out / 'ablations.csv')


def killed(out, at):
    "Run in a process of its own that stops at a step, where it is killed."
    command = [sys.executable, '-c', SCRIPT, str(out), json.dumps(TWO), at]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | dict(OMP_NUM_THREADS='1')) as process:
        assert process.stdout.readline() == 'now\n'
        process.kill()


def test_killed_inside_and_between(unbroken, tmp_path):
    "Killed within the first run, after it but before its row, within the second: the same table, byte for byte."
    killed(tmp_path, 'group 0 2 3')
    killed(tmp_path, 'group 0 3 3')
    assert not (tmp_path / 'ablations.csv').exists()
    killed(tmp_path, 'ppqg-pac 0 1 3')
    assert [r['variant'] for r in read_rows(tmp_path / 'ablations.csv')] == ['group']
    told = []
    run_all(tmp_path, **TWO, progress=lambda *at: told.append(at))
    assert {v for v, *_ in told} == {'ppqg-pac'}
    assert (tmp_path / 'ablations.csv').read_bytes() == (unbroken[0] / 'ablations.csv').read_bytes()


def test_side_by_side(unbroken, tmp_path):
    "Two processes at a time leave the same table, and tell of each step."
    told = []
    run_all(tmp_path, **TWO, jobs=2, progress=lambda *at: told.append(at))
    assert sorted(told) == unbroken[1]
    assert (tmp_path / 'ablations.csv').read_bytes() == (unbroken[0] / 'ablations.csv').read_bytes()


def test_a_process_apart_ends_with_the_one_that_began_it(tmp_path):
    "Its standard input closes then."
    command = [sys.executable, '-m', 'ppqg_nb.ablations', str(tmp_path), '--one', 'group', '0', '--changes',
               json.dumps(TINY | dict(steps=10**4, save=10**4, log=10**4))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == '1/10000\n'
        process.stdin.close()
        process.stdout.read()
    assert process.returncode == 1


def test_killed_before_it_began(tmp_path):
    "A run that was killed while it wrote its first file begins anew."
    (tmp_path / 'group-0' / '.run.abc.part').mkdir(parents=True)
    (tmp_path / 'group-0' / '.run.abc.part' / 'run.json').write_text('{"rec')
    assert run_one(tmp_path, 'group', 0, TINY, 2)['steps'] == 3


def test_a_process_that_fails_is_said(tmp_path, capfd):
    (tmp_path / 'group-0').mkdir()
    (tmp_path / 'group-0' / 'mine.txt').write_text('not a run')
    with pytest.raises(ChildProcessError, match='The run group, seed 0, ended with code 1; what it said stands above'):
        run_all(tmp_path, 1, ['group'], TINY, 2, jobs=2)
    assert 'group-0 holds no run, there is no run.json' in capfd.readouterr().err
    assert (tmp_path / 'group-0' / 'mine.txt').exists()


def test_more_seeds_go_into_the_same_table(tmp_path):
    run_all(tmp_path, 1, ['group'], TINY, 2)
    first, = read_rows(tmp_path / 'ablations.csv')
    rows = run_all(tmp_path, 2, ['audio', 'group'], TINY, 2)
    assert [(r['variant'], r['seed']) for r in rows] == [('audio', 0), ('audio', 1), ('group', 0), ('group', 1)]
    assert rows[2] == first and rows[3] != first | dict(seed=1)


def test_rows_come_back(tmp_path):
    "By variant and seed, every value of its type; the table that ships can be read."
    rows = [row('visual', 1, single=.123456), row('visual', 0), row('audio', 10), row('audio', 2)]
    write_rows(tmp_path / 'a.csv', rows)
    assert read_rows(tmp_path / 'a.csv') == [rows[3], rows[2], rows[1], rows[0]]
    assert [p.name for p in tmp_path.iterdir()] == ['a.csv']
    shipped = read_rows()
    assert len({(r['terms'], r['test'], r['clips'], r['steps']) for r in shipped}) <= 1
    assert {r['terms'] for r in shipped} <= {fingerprint(recipe('group', 0))}


def slowly(tests, labels):
    "The measures from those of chapter 20, and a loop over pairs."
    scenes = {k: [s for pictures in tests[k] for s in pictures] for k in tests}
    truth = {k: torch.stack([s.labels for s in scenes[k]]) for k in tests}
    first = slice(None, None, 2)
    def J(k, at=slice(None)): return score((labels[k] > 0).float()[at], (truth[k] > 0).long()[at], 's4', 'frame')['J']
    hot = torch.nn.functional.one_hot(labels['semantic'], len(CLASSES)).movedim(-1, 2)
    right = []
    for s, found in zip(scenes['single'], labels['single'] > 0):
        ious = {k: (found & (s.objects == k)).sum() / (found | (s.objects == k)).sum() for k in s.objects.unique().tolist() if k}
        k, = s.sounding[0].nonzero()[:, 0].tolist()
        right.append(ious.get(k, 0) > .5 and max(ious, key=ious.get) == k)
    return dict(single=J('single', first), multi=J('multi'), semantic=score(hot, truth['semantic'], 'avss', 'dataset')['J'],
                pairs=np.mean([a and b for a, b in zip(right[::2], right[1::2])]), null=(labels['null'] > 0).float().mean().item())


@pytest.mark.parametrize('wrong', [0, .1, .5])
def test_measures_are_those_of_the_metrics(wrong):
    "Truth with a share of scenes in which the next class is marked instead, at other places."
    tests, rng = scenes_of(12, 32), np.random.default_rng(1)
    labels = {k: torch.stack([s.objects if rng.random() < wrong else s.labels for p in tests[k] for s in p]) for k in tests}
    found = measured(tests, {k: list(x.view(12, -1, 1, 32, 32)) for k, x in labels.items()})
    assert list(found) == list(MEASURES)
    assert found == pytest.approx(slowly(tests, labels), abs=1e-6)
    if not wrong: assert list(found.values()) == [1, 1, 1, 1, 0]


def test_scores_do_not_depend_on_batches():
    "Nor on sharing: the same labels as from the model's own forward, sound by sound."
    tests = scenes_of(5, 32)
    model = VCT(config_of(recipe('ppqg-pac', 0, TINY))).eval()
    with torch.no_grad(): model.class_head.bias[-1] -= 3
    with torch.inference_mode():
        found = {k: [torch.stack([model.compose(model(s.frames, s.patches)).argmax(1) for s in p]) for p in tests[k]] for k in tests}
    for batch in (1, 2, 32): assert scores(model, tests, batch) == pytest.approx(measured(tests, found), abs=1e-4)


@pytest.mark.parametrize('n', [2, 3, 5, 30])
def test_interval_is_that_of_the_paired_t_test(n):
    x, y = np.random.default_rng(n).normal(.5, .1, (2, n))
    rows = [row(v, s, semantic=float(z)) for v, zs in (('group', x), ('cross', y)) for s, z in enumerate(zs)]
    d, theirs = paired(rows, 'group', 'cross'), stats.ttest_rel(x, y).confidence_interval(.95)
    assert d[:3] == pytest.approx((np.mean(x - y), *theirs), abs=1e-12)
    assert list(d.each.values()) == pytest.approx(x - y)
    back = paired(rows[::-1], 'cross', 'group')
    assert back[:3] == pytest.approx((-d.mean, -d.high, -d.low), abs=1e-12)


def test_interval_of_two_by_hand():
    "With one degree of freedom Student is Cauchy: the 97.5 % point is tan(0.475 π)."
    assert interval([.1, .3]) == pytest.approx((.2, .2 - math.tan(.475 * math.pi) * .1, .2 + math.tan(.475 * math.pi) * .1))
    assert interval([.1, .1, .1])[1:] == pytest.approx((.1, .1))
    for few in ([], [.3]): assert all(map(math.isnan, interval(few)[1:]))


def test_only_common_seeds_are_paired():
    rows = [row('group', s, multi=.1 * s) for s in (0, 1, 4)] + [row('cross', s, multi=0.) for s in (1, 2, 4)]
    assert paired(rows, 'group', 'cross', 'multi').each == pytest.approx({1: .1, 4: .4})
    assert math.isnan(paired(rows, 'group', 'audio').mean)


@pytest.mark.parametrize('low, high, theirs, word', [(.1, .2, 1., 'holds'), (.1, .2, -1., 'does not hold'), (-.2, -.1, -1., 'holds'),
    (-.2, -.1, 1., 'does not hold'), (-.1, .1, 1., 'open'), (0., .1, 1., 'open'), (.1, .2, None, 'higher'),
    (-.2, -.1, None, 'lower'), (-.1, .1, None, 'open'), (math.nan, math.nan, 1., 'not run')])
def test_standing(low, high, theirs, word): assert standing(Difference(0., low, high, {}), theirs) == word


def test_verdicts():
    rows = [row(v, s, semantic=x) for v, xs in (('cross', (.50, .51, .52)), ('visual', (.40, .41, .43))) for s, x in enumerate(xs)]
    assert verdict(rows, 'cross', 'visual') == 'cross against visual: holds (+9.7 points, +8.2 to +11.1, 3 seeds); published +0.6.'
    rows[0]['semantic'] = .1
    assert verdict(rows, 'cross', 'visual').startswith('cross against visual: open, 3 seeds do not decide (')
    assert verdict(rows, 'cross', 'visual', 'pairs') == 'cross against visual: open, 3 seeds do not decide (+0.0 points, +0.0 to +0.0).'
    assert [verdict([], *pair).split(': ')[1][:7] for pair in COMPARISONS] == ['not run'] * 8


def test_table_of_few_rows():
    lines = table([row('group', 0, single=.2), row('group', 1, single=.4), row('audio')]).splitlines()
    assert len(lines) == 8 and '30.0 ± 14.1' in lines[4] and '36.3' in lines[4] and '50.0 ± nan' not in lines[1] and '–' in lines[2]


@pytest.mark.parametrize('call, sentence', [
    (lambda p: recipe('ppqg', 0), "There is no variant 'ppqg'; the variants are audio, visual, cross, group, ppqg-free"),
    (lambda p: recipe('group', 0, dict(stpes=3)), "Recipe has no field 'stpes'; the nearest is 'steps'"),
    (lambda p: recipe('group', 0, dict(config=dict(hiden=8))), "Config has no field 'hiden'; the nearest is 'hidden'"),
    (lambda p: run_all(p, 0), 'seeds is 0; it must be a whole number from 1 on'),
    (lambda p: run_all(p, 1, jobs=1.5), 'jobs is 1.5; it must be a whole number from 1 on'),
    (lambda p: run_all(p, 1, ['all']), "There is no variant 'all'"),
    (lambda p: run_all(p, 1, changes=TINY | dict(backbone='no_such_package')), 'There is no file no_such_package, and no installed'),
    (lambda p: read_rows(p / 'none.csv'), 'There is no table .*none.csv; name an ablations.csv of run_all'),
    (lambda p: read_rows(__file__), 'is no table of ablations; its first line must be variant,seed,single'),
])
def test_bad_input(call, sentence, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence): call(tmp_path)


@pytest.mark.parametrize('line', ['group,0,.5', 'group,x' + ',1' * 11, 'group,0' + ',1' * 10 + ',a'])
def test_damaged_rows(line, tmp_path):
    path = tmp_path / 'ablations.csv'
    write_rows(path, [row()])
    with open(path, 'a') as f: f.write(line + '\n')
    with pytest.raises(ValueError, match='is damaged .*; take the broken line out of it'): read_rows(path)


def test_other_terms_are_refused(tmp_path):
    write_rows(tmp_path / 'ablations.csv', [row()])
    with pytest.raises(ValueError, match=r'has group, seed 0, on other terms \(3 steps, 3 pictures\); name another folder'):
        run_all(tmp_path, 1, ['group'], TINY, 3)
    assert [p.name for p in tmp_path.iterdir()] == ['ablations.csv']


def test_command(unbroken, capsys):
    "Of what is done it prints the table and eight sentences; an error is a sentence, too."
    words = [str(unbroken[0]), '--seeds', '1', '--variants', *TWO['variants'], '--clips', '3', '--changes', json.dumps(TINY)]
    ablations.main(words)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ['variant', 'seeds'] and len(lines) == 16 and lines[-1].endswith('published +1.0.')
    with pytest.raises(SystemExit) as stopped: ablations.main([*words, '--jobs', '0'])
    assert stopped.value.code == 'jobs is 0; it must be a whole number from 1 on.'
