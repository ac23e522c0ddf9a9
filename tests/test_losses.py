"The loss at its edges: what the chapter on losses leaves out."
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import pytest, torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from ppqg_nb.core import PRESETS, Config
from ppqg_nb.losses import (bce_cost, compared, criterion, dice_cost, draw, mask_count, mask_losses, match,
                            sample, sound_targets, uncertain_points)

CONFIG = Config(classes=('background', 'a', 'b'), sounds=('background', 'a', 'b'), points=0)
POINTS = replace(CONFIG, points=64)
both = pytest.mark.parametrize('config', (CONFIG, POINTS), ids=('pixels', 'points'))


def prediction(frames, layers=3, queries=6, size=(64, 96), padded=None, dtype=torch.float32, grad=False, scores=None):
    "A random prediction, as chapter 12 makes it."
    padded = padded or size
    def layer():
        c, m = torch.randn(frames, queries, 4, dtype=dtype), 3 * torch.randn(frames, queries, *(n // 4 for n in padded), dtype=dtype)
        return SimpleNamespace(class_logits=c.requires_grad_(grad), mask_logits=m.requires_grad_(grad))
    layers = tuple(layer() for _ in range(layers))
    return SimpleNamespace(layers=layers, mask_logits=layers[-1].mask_logits, scores=scores, size=size, padded=padded)


def target(labels, size=(64, 96), **more):
    return dict(labels=torch.tensor(labels, dtype=torch.long), masks=torch.rand(len(labels), *size) > .6, **more)


def seeded(number=0): return torch.Generator().manual_seed(number)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(0, 5), st.integers(0, 2**31))
def test_matching_is_a_brute_force_optimum_with_any_counts(N, M, seed):
    g = seeded(seed)
    c, z = torch.randn(N, 4, generator=g), 3 * torch.randn(N, 8, 8, generator=g)
    labels, masks = torch.randint(0, 3, (M,), generator=g), (torch.rand(M, 32, 32, generator=g) > .5).float()
    rows, columns = match(c, z, labels, masks, CONFIG)
    assert rows.dtype == columns.dtype == torch.int64
    assert len(rows.unique()) == len(columns.unique()) == len(rows) == min(N, M)
    if not M: return
    x, y = compared(z, masks)
    cost = -2 * c.softmax(1)[:, labels] + 5 * bce_cost(x, y) + 5 * dice_cost(x, y)
    if N < M: cost = cost.T
    best = min(sum(cost[n, m].item() for m, n in enumerate(p)) for p in permutations(range(len(cost)), cost.shape[1]))
    assert cost[(rows, columns) if N >= M else (columns, rows)].sum().item() == pytest.approx(best, abs=1e-4)


@both
def test_fewer_queries_than_objects(config):
    pred, t = prediction(1, queries=2, grad=True), target([0, 1, 2, 1])
    loss, parts = criterion(pred, [t], config, seeded())
    loss.backward()
    assert loss.isfinite() and len(parts) == 9
    pairs = match(pred.layers[-1].class_logits[0], pred.mask_logits[0], t['labels'], t['masks'], CONFIG)
    bce, _ = mask_losses(pred.mask_logits[0][pairs[0]], t['masks'][pairs[1]], CONFIG)
    if config is CONFIG: assert parts['bce_2'].item() == pytest.approx(bce.item() / 4)    # divided by all four objects


@both
def test_no_objects_at_all(config):
    pred = prediction(2, grad=True)
    loss, parts = criterion(pred, [target([])] * 2, config, seeded())
    loss.backward()
    for i, layer in enumerate(pred.layers):
        assert parts[f'bce_{i}'].item() == parts[f'dice_{i}'].item() == 0
        assert (layer.mask_logits.grad == 0).all()
        assert layer.class_logits.grad.abs().sum() > 0
        everything = -layer.class_logits.log_softmax(-1)[..., -1].mean()
        assert parts[f'cls_{i}'].item() == pytest.approx(everything.item(), rel=1e-5)


def test_differing_counts_add_up_to_the_frames_one_by_one():
    targets = [target([0, 1, 2]), target([]), target([2])]
    pred = prediction(3)
    _, parts = criterion(pred, targets, CONFIG)
    sums = dict(bce=0., dice=0.)
    for i, t in enumerate(targets):
        one = SimpleNamespace(**vars(pred) | dict(mask_logits=pred.mask_logits[i:i + 1], layers=tuple(SimpleNamespace(
            class_logits=l.class_logits[i:i + 1], mask_logits=l.mask_logits[i:i + 1]) for l in pred.layers)))
        _, p = criterion(one, [t], CONFIG)
        for name in sums: sums[name] += p[f'{name}_1'].item() * max(1, len(t['labels']))
    for name, total in sums.items(): assert parts[f'{name}_1'].item() == pytest.approx(total / 4, rel=1e-5)


def test_weighted_class_loss_is_a_mean_over_all_queries_of_the_batch():
    targets, pred = [target([1]), target([2, 0])], prediction(2)
    _, parts = criterion(pred, targets, CONFIG)
    top = bottom = 0.
    for c, m, t in zip(pred.layers[-1].class_logits, pred.mask_logits, targets):
        wanted = dict(zip(*(i.tolist() for i in match(c, m, t['labels'], t['masks'], CONFIG))))
        for n, logits in enumerate(c.log_softmax(-1)):
            k, w = (t['labels'][wanted[n]].item(), 1.) if n in wanted else (3, .1)
            top, bottom = top - w * logits[k].item(), bottom + w
    assert parts['cls_2'].item() == pytest.approx(top / bottom, rel=1e-5)


@both
def test_unannotated_frames_are_left_out(config):
    pred = prediction(3, grad=True, scores=torch.randn(3, 3, requires_grad=True))
    loss, _ = criterion(pred, [dict(annotated=False), target([1]), target([0]) | dict(annotated=torch.tensor(False))], config, seeded())
    loss.backward()
    for x in (pred.mask_logits, pred.layers[0].class_logits, pred.scores):
        assert (x.grad[[0, 2]] == 0).all() and x.grad[1].abs().sum() > 0


def test_all_unannotated_is_an_error():
    with pytest.raises(ValueError, match='No frame of the batch is annotated'):
        criterion(prediction(2), [dict(annotated=False)] * 2, CONFIG)


@both
@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16))
def test_half_precision_is_computed_in_float32(config, dtype):
    pred, t = prediction(1, dtype=dtype, scores=torch.randn(1, 3, dtype=dtype)), [target([0, 2])]
    wide = SimpleNamespace(**vars(pred) | dict(scores=pred.scores.float(), mask_logits=pred.mask_logits.float(), layers=tuple(
        SimpleNamespace(class_logits=l.class_logits.float(), mask_logits=l.mask_logits.float()) for l in pred.layers)))
    loss, parts = criterion(pred, t, config, seeded())
    assert {v.dtype for v in parts.values()} == {torch.float32}
    assert loss.item() == pytest.approx(criterion(wide, t, config, seeded())[0].item(), rel=1e-6)


@both
def test_autocast_changes_nothing(config):
    pred, t = prediction(1), [target([0, 2])]
    plain, _ = criterion(pred, t, config, seeded())
    with torch.autocast('cpu', torch.bfloat16): cast, _ = criterion(pred, t, config, seeded())
    assert torch.equal(plain, cast)


@both
def test_gradients_in_float64(config):
    c, m = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True),
            torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True))
    s = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    targets = [target([1, 0], (16, 16)), target([2], (16, 16))]
    def loss(c, m, s):
        layers = (SimpleNamespace(class_logits=c, mask_logits=m),)
        pred = SimpleNamespace(layers=layers, mask_logits=m, scores=s, size=(16, 16), padded=(16, 16))
        return criterion(pred, targets, replace(config, points=min(config.points, 16)), seeded())[0]
    assert loss(c, m, s).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, (c, m, s))


@pytest.mark.parametrize('layers', (1, 3, 10))
def test_draws_come_in_the_released_order(layers, monkeypatch):
    drawn, rand = [], torch.rand
    def recorded(*shape, **kw): drawn.append((shape, kw['generator'])); return rand(*shape, **kw)
    targets, g = [target([1]), target([]), target([0, 2]), dict(annotated=False)], seeded()
    pred = prediction(4, layers)
    monkeypatch.setattr(torch, 'rand', recorded)
    criterion(pred, targets, replace(CONFIG, points=100), g)
    one = [(1, 100, 2)] * 3 + [(3, 300, 2), (3, 25, 2)]
    assert [shape for shape, _ in drawn] == one * layers
    assert all(kw is g for _, kw in drawn)


def test_last_layer_draws_first_then_the_others_in_turn(monkeypatch):
    import ppqg_nb.losses as losses
    seen = []
    monkeypatch.setattr(losses, 'layer_losses', lambda c, m, *rest: seen.append(m[0, 0, 0, 0].item()) or dict(cls=c.sum()))
    pred = prediction(1, 4)
    criterion(pred, [target([1])], CONFIG)
    assert seen == [pred.layers[i].mask_logits[0, 0, 0, 0].item() for i in (3, 0, 1, 2)]


def test_a_generator_and_the_global_one_draw_the_same():
    pred, t = prediction(1), [target([0, 1])]
    a, _ = criterion(pred, t, POINTS, seeded(3))
    torch.manual_seed(3)
    b, _ = criterion(pred, t, POINTS)
    c, _ = criterion(pred, t, POINTS)
    assert torch.equal(a, b) and not torch.equal(b, c)


def test_all_pixels_draws_nothing(monkeypatch):
    monkeypatch.setattr(torch, 'rand', lambda *a, **k: pytest.fail('a random draw'))
    criterion(prediction(1), [dict(labels=torch.tensor([1]), masks=torch.ones(1, 64, 96, dtype=torch.bool))], CONFIG)


@both
def test_padding_is_background_and_moves_nothing(config):
    "A mask of the unpadded frame lies where the same mask of the padded frame lies"
    pred = prediction(1, size=(50, 70), padded=(64, 96))
    t = target([1, 2], (50, 70))
    large = dict(labels=t['labels'], masks=F.pad(t['masks'], (0, 26, 0, 14)))
    whole = SimpleNamespace(**vars(pred) | dict(size=(64, 96)))
    assert torch.equal(criterion(pred, [t], config, seeded())[0], criterion(whole, [large], config, seeded())[0])


def test_perfect_masks_cost_little_and_move_the_loss_by_the_class_alone():
    t = target([1, 2]); t['masks'] = t['masks'][:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2)
    pred = prediction(1)
    for layer in pred.layers: layer.mask_logits[0, :2] = 40. * t['masks'][:, ::4, ::4] - 20
    _, parts = criterion(pred, [t], CONFIG)
    for i in range(3): assert parts[f'bce_{i}'] < 1e-6 and parts[f'dice_{i}'] < 1e-4


def test_weights_are_those_of_the_config():
    pred, t = prediction(1, scores=torch.randn(1, 3)), [target([0, 1])]
    config = replace(CONFIG, weights=(.5, 3., 7., 11.))
    loss, parts = criterion(pred, t, config)
    weight = dict(cls=.5, bce=3, dice=7, pac=11)
    assert loss.item() == pytest.approx(sum(weight[k.split('_')[0]] * v.item() for k, v in parts.items()), rel=1e-5)
    assert criterion(prediction(1), t, config)[1].keys() == {f'{n}_{i}' for n in ('cls', 'bce', 'dice') for i in range(3)}


def test_soft_and_integer_masks_and_labels_of_other_dtypes():
    pred, t = prediction(1), target([1, 2])
    loss, _ = criterion(pred, [t], CONFIG)
    for masks in (t['masks'].float(), t['masks'].byte(), t['masks'].numpy()):
        assert torch.equal(criterion(pred, [dict(labels=t['labels'].int(), masks=masks)], CONFIG)[0], loss)


def test_sounds_name_prototypes_where_these_are_not_the_classes():
    s4 = replace(PRESETS['released-s4-swin-base-384'], points=0)
    pred = prediction(2, scores=torch.randn(2, 23))
    for layer in pred.layers: layer.class_logits = layer.class_logits[..., :3]
    _, parts = criterion(pred, [target([0, 1], sounds=torch.tensor([5, 22])), dict(annotated=False)], s4)
    wanted = torch.zeros(1, 23); wanted[0, [5, 22]] = 1
    assert parts['pac'].item() == pytest.approx(F.binary_cross_entropy_with_logits(pred.scores[:1], wanted).item())
    with pytest.raises(ValueError, match='no sounds'): criterion(pred, [target([0, 1])] * 2, s4)
    with pytest.raises(ValueError, match='sounds of a target go from 23 to 23; they must be from 0 to 22'):
        criterion(pred, [target([0], sounds=[23])] * 2, s4)


def test_a_model_whose_sounds_are_not_its_classes_never_takes_labels_for_sounds():
    for config in (replace(CONFIG, sounds=('a', 'b')), replace(CONFIG, sounds=('background', 'b', 'a'))):
        with pytest.raises(ValueError, match='A target has no sounds'): sound_targets([target([0, 1])], config)
    assert sound_targets([target([0, 2])], CONFIG).tolist() == [[1, 0, 1]]


def test_a_silent_frame_has_an_empty_list_of_sounds():
    s4 = PRESETS['released-s4-swin-base-384']
    for nothing in ([], torch.zeros(0), torch.zeros(0, dtype=torch.long)):
        assert not sound_targets([dict(sounds=nothing)], s4).any()


@pytest.mark.parametrize('change, sentence', (
    (dict(labels=torch.tensor([0, 3])), 'labels of targets.0. go from 0 to 3; they must be from 0 to 2'),
    (dict(labels=torch.tensor([-1, 0])), 'go from -1 to 0'),
    (dict(labels=torch.tensor([0., 1.])), 'are torch.float32; they must be int64'),
    (dict(labels=torch.tensor([[0, 1]])), r'labels of targets.0. has shape \(1, 2\)'),
    (dict(masks=torch.ones(3, 64, 96)), r'masks of targets.0. has shape \(3, 64, 96\); it must be \(M, H, W\) with M = 2'),
    (dict(masks=torch.ones(2, 60, 96)), 'with M = 2, H = 64, W = 96'),
    (dict(masks=torch.ones(64, 96)), r'has shape \(64, 96\)'),
    (dict(masks=torch.full((2, 64, 96), 255)), 'go from 255 to 255; they must be bool or in'),
))
def test_bad_targets_are_named(change, sentence):
    with pytest.raises(ValueError, match=sentence): criterion(prediction(1), [target([0, 1]) | change], CONFIG)


def test_missing_parts_and_wrong_numbers_are_named():
    t = target([1])
    for key in ('labels', 'masks'):
        with pytest.raises(ValueError, match=f'has no {key}; add them'):
            criterion(prediction(1), [{k: v for k, v in t.items() if k != key}], CONFIG)
    with pytest.raises(ValueError, match='There are 3 targets for 2 frames'): criterion(prediction(2), [t] * 3, CONFIG)
    pred = prediction(1); pred.layers[-1].mask_logits[:] = float('nan')
    with pytest.raises(ValueError, match='NaN or infinity'): criterion(pred, [t], CONFIG)


def test_points_hit_the_middle_of_pixels_and_are_zero_outside():
    m = torch.rand(1, 5, 7)
    y, x = torch.meshgrid((torch.arange(5) + .5) / 5, (torch.arange(7) + .5) / 7, indexing='ij')
    assert torch.allclose(sample(m, torch.stack([x, y], -1).view(1, -1, 2)), m.flatten(1), atol=1e-5)
    assert sample(m, torch.tensor([[[-.5, .5], [2., 2.]]])).abs().max() == 0


def test_uncertain_points_with_any_share():
    m = torch.randn(2, 8, 8)
    for importance in (0., .5, 1.):
        p = uncertain_points(m, replace(POINTS, importance=importance))
        assert p.shape == (2, 64, 2) and 0 <= p.min() <= p.max() < 1
    assert uncertain_points(m[:0], POINTS).shape == (0, 64, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_one_seed_gives_one_loss_on_the_cpu_and_on_cuda():
    pred, t = prediction(1), [target([0, 1])]
    far = SimpleNamespace(**vars(pred) | dict(mask_logits=pred.mask_logits.cuda(), layers=tuple(
        SimpleNamespace(class_logits=l.class_logits.cuda(), mask_logits=l.mask_logits.cuda()) for l in pred.layers)))
    assert criterion(far, t, POINTS, seeded())[0].item() == pytest.approx(criterion(pred, t, POINTS, seeded())[0].item(), rel=1e-5)
    assert draw(1, 5, far.mask_logits, torch.Generator('cuda').manual_seed(0)).is_cuda


def count_here(rank, store):
    "One of two processes: with three and with no objects"
    dist.init_process_group('gloo', init_method=store, rank=rank, world_size=2)
    labels = torch.zeros(3 * (1 - rank))
    assert mask_count([(labels, None)]).item() == 1.5
    dist.destroy_process_group()


def test_the_count_is_averaged_over_processes(tmp_path):
    mp.spawn(count_here, ((tmp_path/'store').as_uri(),), nprocs=2)
