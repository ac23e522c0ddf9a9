"Every source of queries with every regime of prototypes it allows, on every task, through the whole model."
from dataclasses import replace

import pytest
import torch

from ppqg_nb.core import AVSS_CLASSES, BINARY_CLASSES, PRESETS, PROTOTYPES, QUERIES, S4_CATEGORIES
from ppqg_nb.losses import criterion
from ppqg_nb.vct import VCT

TASKS = dict(avss=dict(classes=AVSS_CLASSES, sounds=AVSS_CLASSES), s4=dict(classes=BINARY_CLASSES, sounds=S4_CATEGORIES),
             ms3=dict(classes=BINARY_CLASSES, sounds=()))
LEGAL = [(q, 'none') for q in QUERIES] + [('ppqg', p) for p in PROTOTYPES if p != 'none']

# A shift of all keys changes no softmax over them: these receive a gradient of 0, or nearly.
IDLE = ('.cross.k.bias', '.among.k.bias')


def variant(task, queries, prototypes, **kw):
    "The small preset with one source, one regime and one task; MS3 names no sounds, so its classes are the prototypes"
    words = TASKS[task]
    if prototypes != 'none' and not words['sounds']: words = words | dict(sounds=words['classes'])
    return replace(PRESETS['scenes-tiny'], queries=queries, prototypes=prototypes, **words, **kw)


def batch(config, B=2, size=64):
    "Frames, patches, and targets with the background and one object"
    masks = torch.zeros(2, size, size, dtype=torch.bool)
    masks[1, 16:48, 16:40] = True
    masks[0] = ~masks[1]
    targets = []
    for i in range(B):
        labels = torch.tensor([0, 1 if len(config.classes) == 2 else 6 + i])
        targets.append(dict(labels=labels, masks=masks))
        if config.sounds != config.classes: targets[-1]['sounds'] = torch.tensor([3 + i])
    return torch.rand(B, 3, size, size), torch.randn(B, 96, 64), targets


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('queries, prototypes', LEGAL)
def test_variant_trains_on_task(task, queries, prototypes):
    config = variant(task, queries, prototypes)
    model = VCT(config).train()
    with torch.no_grad():           # the deformable attention starts with maps of zeros, which let no gradient through
        for p in model.parameters(): p.add_(.01 * torch.randn_like(p))
    frames, patches, targets = batch(config)
    pred = model(frames, patches)
    assert pred.class_logits.shape == (2, config.num_queries, len(config.classes) + 1)
    loss, parts = criterion(pred, targets, config)
    assert loss.isfinite() and ('pac' in parts) == (prototypes in ('visual', 'pac'))
    loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [n for n, p in trained.items() if not p.grad.any() and not n.endswith(IDLE)] == []


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('queries, prototypes', LEGAL)
def test_variant_is_deterministic_in_eval(task, queries, prototypes):
    config = variant(task, queries, prototypes)
    model = VCT(config).eval()
    frames, patches, _ = batch(config)
    with torch.no_grad(): first, second = (model(frames, patches) for _ in range(2))
    assert torch.equal(first.mask_logits, second.mask_logits) and torch.equal(first.class_logits, second.class_logits)


@pytest.mark.parametrize('queries, prototypes', LEGAL)
def test_only_audio_queries_hear_the_clip(queries, prototypes):
    config = variant('avss', queries, prototypes)
    model = VCT(config).eval()
    frames, patches, _ = batch(config)
    with torch.no_grad(): one, other = (model(frames, p) for p in (patches, patches.flip(0)))
    assert torch.equal(one.generated.queries, other.generated.queries) == (queries != 'audio')
    assert not torch.equal(one.class_logits, other.class_logits)       # in the decoder they all do


@pytest.mark.parametrize('queries', [q for q in QUERIES if q != 'ppqg'])
@pytest.mark.parametrize('prototypes', [p for p in PROTOTYPES if p != 'none'])
def test_prototypes_need_a_prompt(queries, prototypes):
    with pytest.raises(ValueError, match='prototypes'): variant('avss', queries, prototypes)


@pytest.mark.parametrize('prototypes', [p for p in PROTOTYPES if p != 'none'])
def test_prototypes_need_sounds(prototypes):
    with pytest.raises(ValueError, match='sounds'):
        replace(PRESETS['scenes-tiny'], queries='ppqg', prototypes=prototypes, sounds=())
