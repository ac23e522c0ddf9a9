#!/usr/bin/env python3
"""The released presets beside the golden runs of the authors' code: the largest error of every stage, for all three tasks.

    python tests/parity.py                      a table on the screen; exit code 1 if a stage misses its tolerance
    python tests/parity.py --json FILE          the same, also as JSON
    python tests/parity.py --device cuda        on a GPU, in float32 (TF32 off)
    python tests/parity.py --dtype bfloat16     under autocast, with the tolerances of that precision

Weights, inputs and numbers: see released.py and golden/README.md.
"""
import argparse, json, sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ppqg_nb.core import PRESETS
from ppqg_nb.losses import criterion
from ppqg_nb.prototypes import pool_audio
from ppqg_nb.queries import Generated
from ppqg_nb.vct import VCT, Layer, Prediction
from released import criterion_inputs, fill, inputs

TASKS = ('avss', 's4', 'ms3')
SWIN = dict(embed_dim=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))       # the small Swin of the golden runs


def config(task, **options): return replace(PRESETS[f'released-{task}-swin-base-384'], backbone_options={**SWIN, **options})


@cache
def golden(task):
    with np.load(Path(__file__).parent/'golden'/f'parity_{task}.npz') as file: return dict(file)


def model(task, **options):
    vct = VCT(config(task, **options)).eval()
    fill(vct)
    return vct


@torch.inference_mode()
def stages(vct, task, device='cpu', dtype=torch.float32):
    "Every stage that the golden file has, by its name there, in float32 on the CPU."
    frames, regions, patches = (x.to(device) for x in inputs(task))
    seen, heads = {}, vct.to(device).generator.scores
    def keep(name): return lambda module, given, out: seen.update({name: out})
    hooks = [module.register_forward_hook(keep(name)) for name, module in dict(
        pre=vct.pyramid.regions, fused=vct.pyramid, vggish=vct.vggish, audio=vct.audio, decoded=vct.pixel_decoder).items()]
    with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
        pred = vct(frames, patches, regions)
        features = heads.features(pool_audio(seen['audio']), vct.generator.prototypes) if heads else None
    for hook in hooks: hook.remove()
    made, (mask_features, scales) = pred.generated, seen['decoded']
    out = {f'{name}_res{i}': m for name in ('pre', 'fused') for i, m in enumerate(seen[name], 2)}
    out |= {'vggish': seen['vggish'], 'audio': seen['audio'].transpose(1, 2).unflatten(2, (6, 4)), 'mask_features': mask_features}
    out |= {f'ms{i}': m for i, m in enumerate(scales)}
    out |= {'vq_pre_proj': made.pixels, 'vq_mixer': made.embedded.transpose(1, 2), 'vq_pre_attn': made.prompted.transpose(0, 1),
            'vq_assign': made.queries - made.prompted, 'queries': made.queries.transpose(0, 1),
            'pred_logits_all': torch.stack([l.class_logits for l in pred.layers]),
            'pred_masks_all': torch.stack([l.mask_logits for l in pred.layers])}
    out['sem_seg'] = F.interpolate(vct.compose(pred), (224, 224), mode='bilinear')
    if features: out |= {'audio_feat': features[0], 'proto_feat': features[1].expand(2, -1, -1)}
    return {name: x.float().cpu() for name, x in out.items()}


def compared(task):
    "The stages that the golden file has."
    return [key[:-5] for key in golden(task) if key.endswith('/step')]


def pairs(task, found):
    "Of each stage of the golden file: our numbers and the golden ones."
    g = golden(task)
    def thinned(name): return found[name][..., ::g[f'{name}/grid'], ::g[f'{name}/grid']].flatten()[::g[f'{name}/step']].numpy()
    return {name: (thinned(name), g[name]) for name in compared(task)}


def errors(task, found, dtype=torch.float32):
    "The error of each stage: the largest absolute one in float32; in lower precision |ours - golden| / |golden|, Euclidean norms."
    if dtype == torch.float32: return {name: float(np.abs(x - y).max()) for name, (x, y) in pairs(task, found).items()}
    return {name: float(np.linalg.norm(x - y)/np.linalg.norm(y)) for name, (x, y) in pairs(task, found).items()}


def tolerance(stage, dtype=torch.float32):
    """What the error of a stage may be.

    In bfloat16 a pixel whose two best queries are nearly equal goes to the other one, so that the sums over a query's own
    pixels, and what is made of them, move further than rounding alone would move them.
    """
    if dtype == torch.float32: return 1e-3 if stage == 'sem_seg' else 1e-4
    return .3 if stage in ('vq_assign', 'queries') else .03


def losses(task, device='cpu'):
    "Each part of the released criterion: name of ours -> (ours, golden). The random points are drawn as the released code draws them."
    c = config(task)
    layers, maps, features = criterion_inputs(task, len(c.classes), len(c.sounds))
    targets = [dict(labels=m.unique(), masks=torch.stack([m == k for k in m.unique()])) for m in maps]
    nothing = dict(labels=torch.zeros(0, dtype=torch.long), masks=torch.zeros(0, 384, 384, dtype=torch.bool), annotated=False)
    targets += [dict(nothing) for _ in range(5 - len(targets))]
    if task == 's4': targets = [dict(t, sounds=torch.tensor([6])) for t in targets]       # the golden run's category
    scores = features and features[0] @ features[1].T/0.07
    pred = Prediction(tuple(Layer(*l) for l in layers), Generated(torch.zeros(0), scores=scores), (384, 384), (384, 384))
    torch.manual_seed(0)
    _, parts = criterion(pred, targets, c)
    theirs, out = dict(cls='ce', bce='mask', dice='dice'), {}
    for name, value in parts.items():
        part, _, layer = name.partition('_')
        key = 'loss/loss_proto' if part == 'pac' else f'loss/loss_{theirs[part]}' + ('' if layer == '9' else f'_{layer}')
        out[name] = value.item(), float(golden(task)[key])
    assert len(out) == sum(key.startswith('loss/') for key in golden(task))
    return out


def table(device='cpu', dtype=torch.float32):
    "Rows (task, stage, tolerance, error) of all three tasks: the stages, and the parts of the loss."
    for task in TASKS:
        found = stages(model(task), task, device, dtype)
        for stage, error in errors(task, found, dtype).items(): yield task, stage, tolerance(stage, dtype), error
        if device == 'cpu' and dtype == torch.float32:      # the points of the loss are drawn by the CPU's generator
            relative = {name: abs(ours/theirs - 1) for name, (ours, theirs) in losses(task).items()}
            yield task, f'loss, {len(relative)} parts', 1e-4, max(relative.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cpu', help='cpu (default), cuda, …')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'), help='precision (default float32)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the rows there')
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows = []
    print(f"{'task':5} {'stage':24} {'tolerance':>9} {'error':>8}")
    for row in table(args.device, getattr(torch, args.dtype)):
        rows.append(row)
        print('{:5} {:24} {:9.0e} {:8.1e}{}'.format(*row, '' if row[3] <= row[2] else '   MISSED'), flush=True)
    if args.json: args.json.write_text(json.dumps([dict(zip(('task', 'stage', 'tolerance', 'error'), r)) for r in rows], indent=1))
    return int(any(error > allowed for *_, allowed, error in rows))


if __name__ == '__main__': sys.exit(main())
