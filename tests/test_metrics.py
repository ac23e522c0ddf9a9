"Scores against golden numbers and slow loops, in parts and in processes, and a sentence for each mistake."
import subprocess, sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ppqg_nb.masks import sounding_probability
from ppqg_nb.metrics import AREAS, CONVENTIONS, BinaryScore, SemanticScore, score, threshold_counts

GOLDEN = np.load(Path(__file__).parent/'golden'/'metrics.npz')
PROB = sounding_probability(torch.tensor(GOLDEN['bin_pred']).float().flatten(0, 1)).unflatten(0, (6, 5))
TRUTH = torch.tensor(GOLDEN['bin_gt']).long()
MAPS = F.one_hot(torch.tensor(GOLDEN['sem_label']).long(), 71).movedim(-1, 2).float()
LABELS = torch.tensor(GOLDEN['sem_gt']).long()

each_convention = pytest.mark.parametrize('convention', CONVENTIONS)
each_task = pytest.mark.parametrize('task', ('s4', 'avss'))


def batch(task): return (MAPS, LABELS) if task == 'avss' else (PROB, TRUTH)
def made(task): return SemanticScore() if task == 'avss' else BinaryScore()


def same(a, b, tolerance=1e-12):
    assert list(a) == list(b)
    for name in a: np.testing.assert_allclose(a[name], b[name], rtol=0, atol=tolerance, err_msg=name)


def test_golden_binary():
    for i in range(6):
        s = score(PROB[i:i + 1], TRUTH[i:i + 1], 'ms3', 'released')
        assert abs(s['J'] - GOLDEN['bin_J'][i]) < 1e-6 and abs(s['F'] - GOLDEN['bin_F'][i]) < 1e-6
    s = score(PROB, TRUTH, 's4', 'released')
    assert abs(s['J'] - GOLDEN['bin_J'].mean()) < 1e-6 and abs(s['F'] - GOLDEN['bin_F'].mean()) < 1e-6


def test_golden_semantic():
    s = score(MAPS, LABELS, 'avss', 'released')
    assert abs(s['J'] - GOLDEN['sem_miou']) < 1e-6 and abs(s['F'] - GOLDEN['sem_f']) < 1e-6


def binary_slowly(prob, truth, convention):
    "J and F with NumPy, one threshold and one frame at a time, from the words of the chapter"
    at = torch.linspace(0, 1 - 1e-10, 255).numpy()
    J, curves = [], []
    for p, g in zip(prob.flatten(0, 1).numpy(), truth.flatten(0, 1).numpy() > 0):
        m = p > .5
        J.append((m & g).sum() / (m | g).sum() if g.any() else (~m).mean())
        curves.append([1.3 * ((p >= t) & g).sum() / ((p >= t).sum() + .3 * g.sum()) for t in at] if g.any() else None)
    if convention == 'frame': return np.mean(J), np.mean([max(c) for c in curves if c])
    if convention == 'released':
        clips = [[c for c in curves[i:i + truth.shape[1]] if c] for i in range(0, len(J), truth.shape[1])]
        return np.mean(J), np.mean([np.mean(c, 0).max() if c else 0 for c in clips])
    p, g = prob.numpy(), truth.numpy() > 0
    curve = [1.3 * ((p >= t) & g).sum() / ((p >= t).sum() + .3 * g.sum()) for t in at]
    return ((p > .5) & g).sum() / ((p > .5) | g).sum(), max(curve)


def semantic_slowly(label, truth, classes, convention):
    "J and F with NumPy, one frame and one class at a time, with and without background"
    label, truth = (x.numpy().reshape(-1, *x.shape[-2:]) for x in (label, truth))
    groups = [(label, truth)] if convention == 'dataset' else list(zip(label, truth))
    J, F_ = (np.full((len(groups), classes), np.nan) for _ in range(2))
    for i, (p, g) in enumerate(groups):
        for c in range(classes):
            P, G = p == c, g == c
            if not (P | G).any(): continue
            J[i, c] = (P & G).sum() / (P | G).sum()
            precision, recall = (P & G).sum() / max(P.sum(), 1), (P & G).sum() / max(G.sum(), 1)
            F_[i, c] = 1.3 * precision * recall / (.3 * precision + recall) if (P & G).any() else 0
    def mean(x):
        if convention == 'released': return np.mean([np.nanmean(c) if (c == c).any() else 0 for c in x.T])
        return np.mean([np.nanmean(row) for row in x if (row == row).any()])
    return mean(J), mean(F_), mean(J[:, 1:]), mean(F_[:, 1:])


@each_convention
def test_binary_is_what_loops_say(convention):
    prob, truth = torch.rand(4, 3, 12, 17), (torch.rand(4, 3, 12, 17) > .7).long()
    truth[1], truth[2, 0] = 0, 0
    prob[0, 0, 0] = torch.linspace(0, 1 - 1e-10, 255)[:17]       # on the thresholds
    prob[3, 0, :2] = torch.tensor([0., 1.])[:, None]
    s = score(prob, truth, 's4', convention)
    np.testing.assert_allclose((s['J'], s['F']), binary_slowly(prob, truth, convention), rtol=0, atol=1e-12)
    assert s['empty'] == 4 / 12 and s['frames'] == 12


@each_convention
def test_semantic_is_what_loops_say(convention):
    maps, truth = torch.randn(3, 2, 6, 9, 11), torch.randint(0, 5, (3, 2, 9, 11))
    maps[:, :, 3], truth[0] = -9, 0                              # class 3 is never predicted, 5 is never true
    maps[0, 0, 0], maps[:, :, 5] = 9, -10                        # 5 never occurs; one frame is all background
    s = score(maps, truth, 'avss', convention)
    found = [s[k] for k in ('J', 'F', 'J_no_background', 'F_no_background')]
    np.testing.assert_allclose(found, semantic_slowly(maps.argmax(2), truth, 6, convention), rtol=0, atol=1e-12)
    assert s['empty'] == 2 / 6 and s['J_by_class'][5].isnan() and not s['J_by_class'][:5].isnan().any()


@pytest.mark.parametrize('dtype', (torch.float32, torch.float64))
def test_all_thresholds_in_one_pass(dtype):
    at = torch.linspace(0, 1 - 1e-10, 255, dtype=dtype)
    ties = torch.cat([at, at.nextafter(torch.ones(1, dtype=dtype)), at.nextafter(torch.zeros(1, dtype=dtype))]).clamp(0, 1)
    prob, truth = ties.view(1, 45, 17), torch.randint(0, 2, (1, 45, 17))
    both, predicted, true = threshold_counts(prob, truth)
    for i, t in enumerate(at):
        assert predicted[0, i] == (prob >= t).sum() and both[0, i] == ((prob >= t) & (truth > 0)).sum()
    assert true.item() == truth.sum()


@pytest.mark.parametrize('dtype', (torch.float16, torch.bfloat16))
def test_halves_are_compared_as_the_numbers_that_they_are(dtype):
    prob, truth = torch.linspace(0, 1, 765).to(dtype).view(1, 45, 17), torch.randint(0, 2, (1, 45, 17))
    for half, whole in zip(threshold_counts(prob, truth), threshold_counts(prob.double(), truth)): assert torch.equal(half, whole)


@each_task
def test_streaming_is_all_at_once(task):
    pred, target = batch(task)
    at_once, one_by_one = made(task), made(task)
    at_once.update(pred, target)
    for i in torch.randperm(len(pred)): one_by_one.update(pred[i:i + 1], target[i:i + 1])
    for name in CONVENTIONS:
        same(at_once.compute()[name], one_by_one.compute()[name])
        same(at_once.compute()[name], score(pred, target, task, name))


def test_clips_of_unequal_length():
    metric = BinaryScore()
    metric.update(PROB[:1], TRUTH[:1])
    metric.update(PROB[1:2, :2], TRUTH[1:2, :2])
    J = [score(PROB[i:i + 1, :n], TRUTH[i:i + 1, :n])['J'] for i, n in ((0, 5), (1, 2))]
    assert metric.compute()['released']['J'] == pytest.approx(np.mean(J))
    assert metric.compute()['frame']['J'] == pytest.approx((5 * J[0] + 2 * J[1]) / 7)


def test_order_and_grouping_of_frames():
    "`frame` and `dataset` do not see batches; F of `released` can only fall as they grow, but for clips without sound"
    sounding = [i for i in range(6) if i != 3]
    prob, truth = PROB[sounding + [0]], TRUTH[sounding + [0]]
    for name in ('frame', 'dataset'):
        same(score(prob, truth, convention=name), score(prob.view(2, 15, 56, 56), truth.view(2, 15, 56, 56), convention=name))
    F_ = [score(prob.view(n, -1, 56, 56), truth.view(n, -1, 56, 56), convention='released')['F'] for n in (6, 3, 1)]
    assert F_[0] > F_[1] > F_[2]


def test_silent_frames():
    prob, truth = torch.zeros(1, 2, 10, 10), torch.zeros(1, 2, 10, 10, dtype=torch.long)
    prob[0, 0, :3] = .9
    s = score(prob, truth)
    assert s['false_positives'] == pytest.approx(.15) and s['J'] == pytest.approx(.85) and s['empty'] == 1
    assert np.isnan(s['F']) and np.isnan(s['J_sounding']) and score(prob, truth, convention='released')['F'] == 0
    maps = F.one_hot((prob > .5).long(), 3).movedim(-1, 2).float()
    assert score(maps, truth, 'avss')['false_positives'] == pytest.approx(.15)
    truth[:] = 1
    assert np.isnan(score(prob, truth)['false_positives']) and score(prob, truth)['empty'] == 0


def test_areas():
    truth = torch.zeros(1, 3, 100, 100, dtype=torch.long)
    truth[0, 0, 0, :33], truth[0, 1, 0, :34], truth[0, 2, :3] = 1, 1, 1        # 0.33 %, 0.34 %, 3 %
    assert .0033 < AREAS[0] < .0034 and AREAS[1] == .03
    prob = truth.float()
    prob[0, 1] = 0
    s = score(prob, truth)
    assert [s[f'J_{name}'] for name in ('small', 'medium', 'large')] == [1, 0, 1]
    assert s['J_sounding'] == pytest.approx(2 / 3)
    target = torch.zeros(1, 1, 100, 100, dtype=torch.long)
    target[0, 0, 0, 0], target[0, 0, 1:6] = 1, 2                               # two objects in one frame
    s = score(F.one_hot(target * (target > 1), 3).movedim(-1, 2), target, 'avss')
    assert s['J_small'] == 0 and s['J_large'] == 1 and s['J_sounding'] == .5 and np.isnan(s['J_medium'])


@each_task
def test_perfect_and_wrong(task):
    pred, target = (F.one_hot(LABELS, 71).movedim(-1, 2).float(), LABELS) if task == 'avss' else (TRUTH.float(), TRUTH)
    for name in ('frame', 'dataset'): assert score(pred, target, task, name)['J'] == score(pred, target, task, name)['F'] == 1
    for name in CONVENTIONS: assert score(pred.flip(-1), target, task, name)['J'] < score(pred, target, task, name)['J']


def test_kinds_of_input():
    for kind in (np.asarray, lambda x: x): same(score(kind(PROB), kind(TRUTH)), score(PROB.double(), TRUTH.byte()), 1e-3)
    same(score(TRUTH.bool(), TRUTH.bool()), score(TRUTH.float(), TRUTH))
    same(score(PROB.half(), TRUTH.int()), score(PROB.half().float(), TRUTH))


@pytest.mark.parametrize('pred, target, words, kw', [
    (PROB * 2, TRUTH, r'probabilities must lie in \[0, 1\]', {}),
    (PROB - 1e-3, TRUTH, r'probabilities must lie in \[0, 1\]', {}),
    (PROB / 0, TRUTH, r'probabilities must lie in \[0, 1\]', {}),
    (PROB[0], TRUTH, r'pred has shape \(5, 56, 56\)', {}),
    (PROB, TRUTH[:5], 'target has shape', {}),
    (PROB, TRUTH[..., :-1], 'target has shape', {}),
    (MAPS, LABELS, 'pred has shape', {}),
    (PROB, TRUTH, 'pred has shape', dict(task='avss')),
    (PROB, TRUTH * 255, 'labels must lie between 0 and 1', {}),
    (PROB, -TRUTH, 'values from -1 to 0', {}),
    (MAPS[:, :, :70], LABELS, 'labels must lie between 0 and 69', dict(task='avss')),
    (MAPS / 0, LABELS, 'not finite', dict(task='avss')),
    (MAPS[:, :, :1], LABELS * 0, 'at least two', dict(task='avss')),
    (PROB, TRUTH.float(), 'whole numbers', {}),
    (PROB, TRUTH, "task is 'S4'", dict(task='S4')),
    (PROB, TRUTH, "convention is 'image'", dict(convention='image')),
    (PROB[:0], TRUTH[:0], 'No frames', {}),
    (PROB[:, :0], TRUTH[:, :0], 'no frames', {}),
    (MAPS[:0], LABELS[:0], 'No frames', dict(task='avss')),
])
def test_mistakes(pred, target, words, kw):
    with pytest.raises(ValueError, match=words) as e: score(pred, target, **kw)
    assert str(e.value).endswith('.')


@each_task
def test_nothing_scored(task):
    with pytest.raises(ValueError, match='No frames were scored'), pytest.warns(UserWarning): made(task).compute()


def shard(rank, folder):
    "One of two processes: its own share of the clips, unequal ones, then the scores of all"
    torch.distributed.init_process_group('gloo', init_method=(folder/'meet').as_uri(), rank=rank, world_size=2)
    for task in ('s4', 'avss'):
        metric, (pred, target) = made(task), batch(task)
        for i in range(len(pred)):
            if (i == 1) == (rank == 0): metric.update(pred[i:i + 1], target[i:i + 1])
        torch.save(metric.compute(), folder/f'{task}{rank}.pt')
        same(score(pred, target, task), torch.load(folder/f'{task}{rank}.pt')['frame'])    # score does not add up
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason='torch without torch.distributed')
def test_two_processes_are_one(tmp_path):
    torch.multiprocessing.spawn(shard, (tmp_path,), nprocs=2)
    for task in ('s4', 'avss'):
        metric = made(task)
        metric.update(*batch(task))
        for rank in range(2):
            found = torch.load(tmp_path/f'{task}{rank}.pt')
            for name in CONVENTIONS: same(found[name], metric.compute()[name])


def test_the_command_starts_without_torch():
    code = "import sys, ppqg_nb.cli; assert not {'torch', 'torchmetrics'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True)
