"One step of training: everything trains, the groups are whole, and neither processes nor saved memory change a gradient."
import copy, sys
from dataclasses import replace

import pytest, torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings, strategies as st
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from ppqg_nb.core import BINARY_CLASSES, PRESETS, PROTOTYPES, QUERIES, Clip, Config, preset
from ppqg_nb.data import Augment
from ppqg_nb.scenes import CLASSES, Scenes, dubs
from ppqg_nb.training import (SCHEDULES, ClipSource, Examples, Learner, SceneSource, blocks, class_table, collate, heard,
                              object_loss, parameter_groups, positions, rate, renamed, save_memory, set_seed, to_device)
from ppqg_nb.vct import VCT

TINY = Config(classes=CLASSES, sounds=CLASSES, image_size=64, vggish_width=.125, backbone='test_convnext', hidden=16,
              num_queries=6, pixel_mlp=(8, 8), layers=2, levels=('audio', 'V4'), heads=2, ffn=16, points=0)
PLAIN = replace(TINY, queries='visual', prototypes='none')      # without noise
TASKS = dict(avss=dict(), ms3=dict(classes=BINARY_CLASSES, sounds=BINARY_CLASSES),
             s4=dict(classes=BINARY_CLASSES, sounds=CLASSES[1:]))


def examples(task='avss', classes=CLASSES, size=32, count=2, **more):
    return Examples([SceneSource(dubs, CLASSES, 0, 'single', count, size, task=task, **more)], classes)


def batch(numbers=(0, 1), **about):
    source = examples(**about)
    return collate([source[n] for n in numbers], source.classes)


def loss_of(learner, dubs, apart=False):
    "With the same noise each time"
    set_seed(0)
    return learner(dubs, apart)[0]


def steps_down(learner, dubs, apart=False, lr=1e-3):
    "The loss before and after one step of the optimiser, on the same batch and with the same noise"
    optimizer = torch.optim.AdamW(parameter_groups(learner, lr))
    before = loss_of(learner, dubs, apart)
    before.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.parameters())
    optimizer.step()
    with torch.no_grad(): return before.item(), loss_of(learner, dubs, apart).item()


def gradients(learner, dubs):
    loss_of(learner, dubs).backward()
    return {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('queries, prototypes', [(q, 'none') for q in QUERIES] + [('ppqg', p) for p in PROTOTYPES[1:]])
def test_every_variant_learns(queries, prototypes):
    torch.manual_seed(1)
    learner = Learner(VCT(replace(TINY, queries=queries, prototypes=prototypes)), 1.).train()
    before, after = steps_down(learner, batch())
    assert after < before


@pytest.mark.parametrize('apart', (False, True))
@pytest.mark.parametrize('task', TASKS)
def test_every_task_learns(task, apart):
    torch.manual_seed(1)
    config = replace(TINY, **TASKS[task])
    before, after = steps_down(Learner(VCT(config), 1.).train(), batch(task=task, classes=config.classes), apart)
    assert after < before


@pytest.mark.parametrize('name', [name for name in PRESETS if name.startswith('released')])
def test_a_released_preset_learns_at_full_size(name):
    "All its parameters, one frame of 96 × 96 pixels: about 5 GB and some seconds; at 384 × 384 and as it is, 19 GB a clip"
    task, config = name.split('-')[1], replace(preset(name), points=1000)
    found = batch((0,), task=task, classes=CLASSES if task == 'avss' else BINARY_CLASSES, size=96)
    learner = Learner(save_memory(VCT(config)), 1.).train()
    before, after = steps_down(learner, found._replace(regions=found.frames), lr=1e-4)
    assert after < before


def test_seeds_and_numbers_make_examples():
    source = examples(color=.4)
    a, b = source[3], source[3]
    assert all(torch.equal(getattr(x, f), getattr(y, f)) for x, y in zip(a, b) for f in ('frames', 'labels', 'patches'))
    torch.rand(1)
    assert torch.equal(source[3][0].frames, a[0].frames) and not torch.equal(source[4][0].frames, a[0].frames)
    assert not torch.equal(Examples(source.sources, CLASSES, seed=1)[3][0].frames, a[0].frames)


def test_augmented_clips_are_the_same_from_any_process():
    class Augmented(Scenes):
        def __getitem__(self, i): return Augment(32, color=1.)(super().__getitem__(i))
    source = Examples([ClipSource(Augmented(0, 'single', 32, 1, 5), 0)], CLASSES, seed=2)
    def frames(workers):
        loader = DataLoader(source, batch_sampler=list(positions(0, 3, 4)), num_workers=workers, collate_fn=list)
        return torch.cat([clip.frames for clips in loader for one in clips for clip in one])
    assert torch.equal(frames(0), frames(2))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 30))
def test_an_epoch_is_a_permutation(length, seed, epoch):
    class Numbers(list): classes = CLASSES
    source = ClipSource(Numbers(range(length)), seed)
    order = [source(epoch * length + i)[0] for i in range(length)]
    assert sorted(order) == list(range(length))
    assert length < 8 or order != [source((epoch + 1) * length + i)[0] for i in range(length)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9), st.integers(0, 4))
def test_each_number_comes_once_in_its_step(processes, accumulate, each, first, count):
    size = processes * accumulate * each
    ways = [list(positions(first, first + count, size, accumulate, (i, processes))) for i in range(processes)]
    assert all(len(part) == each for way in ways for part in way)
    for k in range(count):
        numbers = sorted(n for way in ways for part in way[k * accumulate:(k + 1) * accumulate] for n in part)
        assert numbers == list(range((first + k) * size, (first + k + 1) * size))


@settings(max_examples=50, deadline=None)
@given(st.permutations(CLASSES), st.integers(0, 2**31))
def test_names_stay_what_they_are(words, seed):
    table = class_table(CLASSES, words)
    clip = Scenes(seed % 5, 'multi', 32, 1, 5)[seed % 5]
    moved = renamed(clip, table, 9)
    assert [words[i] for i in moved.objects.unique()] == sorted({CLASSES[i] for i in clip.objects.unique()}, key=words.index)
    assert {words[i] for i in moved.sounding[0].nonzero()[:, 0]} == {CLASSES[i] for i in clip.sounding[0].nonzero()[:, 0]}
    back = renamed(moved, class_table(words, CLASSES), 9)
    assert torch.equal(back.labels, clip.labels) and torch.equal(back.sounding, clip.sounding)
    assert torch.equal(back.objects, clip.objects)


def test_names_that_a_model_lacks_or_merges():
    with pytest.raises(ValueError, match="The model has no class 'cross'; it has background, disc, square, triangle …: train"):
        class_table(CLASSES, CLASSES[:-1])
    with pytest.raises(ValueError, match='no class'): Examples([SceneSource(dubs, CLASSES, 0)], ('background', 'dog'))
    clip = Scenes(0, 'multi', 32, 1, 1)[0]
    merged = renamed(clip, class_table(CLASSES, BINARY_CLASSES), 2)      # scenes of nine classes, a model of two
    assert torch.equal(merged.labels, (clip.labels > 0).long()) and merged.sounding.tolist() == [[False, True]]


def test_a_null_scene_names_what_is_off_screen():
    clip = next(s for s in Scenes(0, 'null', 32, 1) if s.sounding.any())
    t, = heard(clip, CLASSES)
    assert t['labels'].tolist() == [0] and t['sounds'].tolist() == [0, *sorted(clip.voices.classes)]
    assert 'sounds' not in heard(replace(clip, sounding=None), CLASSES)[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_owners(pictures, count, seconds):
    source = SceneSource(dubs, CLASSES, 1, 'single', count, 32, seconds)
    found = collate([source(n) for n in range(pictures)], CLASSES)
    clips = [s for n in range(pictures) for s in source(n)]
    assert len(found.frames) == pictures * seconds and len(found.targets) == len(found.names) == len(clips) * seconds
    assert torch.equal(found.frames[found.owner], torch.cat([s.frames for s in clips]))
    assert torch.equal(found.patches, torch.cat([s.patches for s in clips]))


def test_objects_are_known_for_scenes_only():
    scene = Scenes(0, 'single', 32, 1, 1)
    class Clips(Scenes):
        def __getitem__(self, i):
            s = super().__getitem__(i)
            return Clip(s.frames, s.labels, s.waveform, s.rate, s.name, patches=s.patches)
    mixed = Examples([ClipSource(scene, 0), ClipSource(Clips(0, 'single', 32, 1, 1), 0)], CLASSES)
    assert collate([mixed[0]], CLASSES).objects is not None and collate([mixed[0], mixed[1]], CLASSES).objects is None
    _, parts = Learner(VCT(PLAIN), 1.)(collate([mixed[1]], CLASSES))
    assert 'objects' not in parts


def test_to_device_moves_all_tensors_and_nothing_else():
    found = to_device(batch(), 'meta')
    assert all(x.is_meta for x in (found.frames, found.patches, found.owner, found.objects))
    assert all(x.is_meta for t in found.targets for x in t.values() if isinstance(x, torch.Tensor))
    assert found.regions is None and found.names == batch().names


def test_unannotated_frames_say_nothing_of_sounds():
    learner = Learner(VCT(TINY)).eval()
    whole = batch()
    half = whole._replace(targets=[t if i % 2 else dict(annotated=False) for i, t in enumerate(whole.targets)])
    odd = torch.arange(1, 4, 2)
    kept = whole._replace(targets=whole.targets[1::2], patches=whole.patches[odd], owner=whole.owner[odd])
    assert loss_of(learner, half, True).item() == pytest.approx(loss_of(learner, kept, True).item(), rel=1e-5)


def test_shared_frames_give_the_gradient_of_repeated_ones():
    learner, found = Learner(VCT(PLAIN), 1.).train(), batch()
    repeated = found._replace(frames=found.frames[found.owner], objects=found.objects[found.owner], owner=torch.arange(4))
    a = {k: g.clone() for k, g in gradients(learner, found).items()}
    learner.zero_grad(set_to_none=True)
    b = gradients(learner, repeated)
    assert a.keys() == b.keys()
    for name, g in a.items(): assert torch.allclose(g, b[name], atol=1e-5, rtol=1e-3), name


def test_object_loss_of_cells_that_are_not_known():
    logits, objects = torch.randn(1, 9, 8, 8, requires_grad=True), torch.zeros(1, 32, 32, dtype=torch.long)
    objects[0, :16] = 255
    object_loss(logits, objects).backward()
    assert (logits.grad[0, :, :4] == 0).all() and (logits.grad[0, :, 4:] != 0).all()
    assert object_loss(logits, torch.full_like(objects, 255)) == 0


@pytest.mark.parametrize('name', PRESETS)
def test_groups_hold_each_trained_parameter_once(name):
    with torch.device('meta'): learner = Learner(VCT(replace(preset(name), backbone_options={})), 1.)
    groups = parameter_groups(learner, 1., .1, .05)
    found = [id(p) for g in groups for p in g['params']]
    assert len(found) == len(set(found)) and set(found) == {id(p) for p in learner.parameters() if p.requires_grad}
    where = {id(p): g for g in groups for p in g['params']}
    for key, p in learner.named_parameters():
        if not p.requires_grad: continue
        assert where[id(p)]['lr'] == (.1 if '.backbone.' in key else 1), key
        gain = p.ndim == 1 and key.endswith('.weight')
        table = key.split('.')[-1] in ('start', 'place', 'level', 'prototypes', 'relative_position_bias_table')
        if gain or table: assert where[id(p)]['weight_decay'] == 0, key
        if p.ndim > 1 and not table: assert where[id(p)]['weight_decay'] == .05, key


@given(st.sampled_from(SCHEDULES), st.floats(0, 1, exclude_max=True), st.sampled_from((0., .05, .3)))
def test_rates_are_shares(schedule, u, warmup): assert 0 <= rate(schedule, u, warmup) <= 1


@pytest.mark.parametrize('backbone', ('test_convnext', 'test_resnet', 'test_efficientnet', 'test_vit', 'convnext_atto'))
def test_saved_memory_changes_no_gradient_and_no_statistics(backbone):
    plain = Learner(VCT(replace(TINY, backbone=backbone, pixel_layers=1, pixel_ffn=16)), 1.).train()
    sparing = copy.deepcopy(plain)
    save_memory(sparing.model)
    assert len(blocks(plain.model)) >= 4
    a, b = gradients(plain, batch()), gradients(sparing, batch())
    assert a.keys() == b.keys()
    for name, g in a.items(): assert torch.allclose(g, b[name], atol=1e-6, rtol=1e-5), name
    for name, x in plain.state_dict().items(): assert torch.equal(x, sparing.state_dict()[name]), name


def test_saved_memory_of_an_average_is_its_own():
    learner = Learner(save_memory(VCT(PLAIN))).eval()
    average = AveragedModel(learner, multi_avg_fn=lambda old, new, _: [p.zero_() for p in old])
    average.update_parameters(learner)          # the first time it copies
    average.update_parameters(learner)
    seen = [l.model.see(batch().frames).features.abs().sum().item() for l in (learner, average.module)]
    assert seen[0] > 0 == seen[1]


def joint(numbers):
    "A model without noise, the same in any process, and a batch of some examples"
    torch.manual_seed(4)
    return Learner(VCT(PLAIN), 1.).train(), batch(numbers)


def one_of_two(rank, store, out):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=store, rank=rank, world_size=2)
    numbers, = positions(1, 2, 4, shard=(rank, 2))
    learner, found = joint(numbers)
    wrapped = DistributedDataParallel(learner, find_unused_parameters=True)
    wrapped(found)[0].backward()
    if rank == 0: torch.save({name: p.grad for name, p in learner.named_parameters() if p.grad is not None}, out)
    dist.destroy_process_group()


@pytest.mark.skipif(sys.platform == 'win32', reason='gloo over a file')
def test_two_processes_give_the_gradient_of_one(tmp_path):
    mp.spawn(one_of_two, ((tmp_path/'store').as_uri(), tmp_path/'gradient.pt'), nprocs=2)
    found = torch.load(tmp_path/'gradient.pt', weights_only=True)
    learner, whole = joint(next(positions(1, 2, 4)))
    wanted = gradients(learner, whole)
    assert found.keys() == wanted.keys()
    for name, g in wanted.items(): assert torch.allclose(found[name], g, atol=1e-5, rtol=1e-4), name


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match='nothing to learn apart: no objects are known and no prototypes used; set apart=0'):
        Learner(VCT(PLAIN))(batch(), apart=True)
    with pytest.raises(ValueError, match='indices in owner go from 0 to 9'):
        Learner(VCT(PLAIN))(batch()._replace(owner=torch.tensor([0, 1, 0, 9])))
    with pytest.raises(ValueError, match="use 'ms3' or 'avss'"): SceneSource(dubs, CLASSES, 0, 'multi', task='s4')
