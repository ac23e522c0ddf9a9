#!/usr/bin/env python3
"""Re-run the notebooks and store what their cells print and draw, so that a second run changes no byte.

    .ci/notebooks.py                    all of nbs/*.ipynb
    .ci/notebooks.py nbs/01_audio.ipynb these
    .ci/notebooks.py --check            write nothing; fail where a stored output has another kind than the fresh one

Cells are skipped as nbdev_test skips them (`skip_exec: true`, `#| eval: false`, the `tst_flags` of settings.ini) and
keep the outputs they have. Each notebook runs in its own folder, on one thread, without a GPU.
"""
import argparse, base64, contextlib, io, json, os, re, struct, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import nbformat
from fastcore.basics import str2bool
from ipykernel.kernelspec import make_ipkernel_cmd
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import nbdev_clean
from nbdev.config import get_config
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
KERNEL = dict(display_name='python3', language='python', name='python3')
STATE, VIEW = 'application/vnd.jupyter.widget-state+json', 'application/vnd.jupyter.widget-view+json'
ENV = dict(OMP_NUM_THREADS='1', MKL_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1', PYTHONHASHSEED='0', COLUMNS='100',
           CUDA_VISIBLE_DEVICES='', PYTORCH_ENABLE_MPS_FALLBACK='1', PYDEVD_DISABLE_FILE_VALIDATION='1')


class ThisPython(AsyncKernelManager):
    "A kernel of the interpreter that runs this file, whatever kernels are installed; no shared history file."
    @property
    def kernel_spec(self):
        argv = make_ipkernel_cmd(extra_arguments=['--HistoryManager.enabled=False'])
        return KernelSpec(argv=argv, display_name='python3', language='python')


def skipped(path, flags):
    "The ids of the cells that nbdev's test runner does not run, or None if it runs none."
    nb = NBProcessor(path, procs=FrontmatterProc, process=True).nb
    if str2bool(nb.frontmatter_.get('skip_exec', False)): return None
    def skip(cell):
        directives = cell.directives_
        if 'nbdev_export(' in cell.source or flags & directives.keys(): return True
        return directives.get('eval:', [''])[0].lower() == 'false'
    return {c['id'] for c in nb.cells if c.cell_type == 'code' and skip(c)}


def execute(nb, path, skip, timeout):
    "Run the notebook's cells in the notebook's folder and store their outputs in `nb`."
    for cell in nb.cells:
        cell.metadata['tags'] = ['skip-execution'] if cell.id in skip else []
    os.environ.update(ENV, PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])))
    os.environ.pop('MPLBACKEND', None)
    os.environ.pop('IN_TEST', None)
    with tempfile.TemporaryDirectory() as folder:
        # Kernels that start side by side can take each other's TCP ports; sockets that are files cannot meet.
        sockets = {} if sys.platform == 'win32' else dict(transport='ipc', ip=f'{folder}/kernel')
        NotebookClient(nb, kernel_manager_class=ThisPython, config=Config(ThisPython=sockets), timeout=timeout,
                       record_timing=False, coalesce_streams=True, startup_timeout=timeout,
                       resources={'metadata': {'path': str(path.parent)}}).execute()


def plain_png(data):
    "The base64 text of a PNG without its text and time chunks, which name versions and dates."
    raw = base64.b64decode(''.join(data))
    out, at = [raw[:8]], 8
    while at < len(raw):
        size, kind = struct.unpack('>I4s', raw[at:at + 8])
        if kind not in (b'tEXt', b'zTXt', b'iTXt', b'tIME'): out.append(raw[at:at + 12 + size])
        at += 12 + size
    return base64.b64encode(b''.join(out)).decode()


def plain_outputs(outputs):
    "Standard error and emptied outputs dropped; neighbouring pieces of one stream joined; PNGs made plain."
    kept = []
    for o in outputs:
        if o['output_type'] == 'stream':
            if o['name'] == 'stderr': continue
            if kept and kept[-1]['output_type'] == 'stream': kept[-1]['text'] += o['text']; continue
        data = o.get('data', {})
        if 'image/png' in data: data['image/png'] = plain_png(data['image/png'])
        kept.append(o)
    return kept


def plain_widgets(nb):
    "Number the widget models in the order in which outputs reach them; keep the state of these only."
    state = nb.metadata.get('widgets', {}).get(STATE, {}).get('state', {})
    names, queue = {}, []
    def seen(i):
        if i in state and i not in names:
            names[i] = f'{len(names):032x}'
            queue.append(i)
    for cell in nb.cells:
        for o in cell.get('outputs', []):
            if VIEW in o.get('data', {}): seen(o['data'][VIEW]['model_id'])
            while queue:
                for i in re.findall(r'IPY_MODEL_(\w+)', json.dumps(state[queue.pop(0)], sort_keys=True)): seen(i)
    def rename(x):
        if isinstance(x, dict): return {k: '' if k == 'msg_id' else rename(v) for k, v in x.items()}
        if isinstance(x, list): return [rename(v) for v in x]
        if isinstance(x, str): return names.get(x, re.sub(r'(?<=IPY_MODEL_)\w+', lambda m: names[m[0]], x))
        return x
    for cell in nb.cells:
        for o in cell.get('outputs', []):
            if VIEW in o.get('data', {}): o['data'][VIEW] = rename(o['data'][VIEW])
    kept = {names[i]: rename(state[i]) for i in names}
    for model in kept.values():
        if 'outputs' in model['state']: model['state']['outputs'] = plain_outputs(model['state']['outputs'])
    return {STATE: {'state': kept, 'version_major': 2, 'version_minor': 0}} if kept else {}


def plain(nb):
    "Make what a run left in `nb` the same from one run to the next."
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = plain_outputs(cell.outputs)
    widgets = plain_widgets(nb)
    nb.metadata = nbformat.from_dict({'kernelspec': KERNEL, **({'widgets': widgets} if widgets else {})})


def kinds(nb):
    "For each code cell: the kind of each of its outputs."
    return {c.id: [(o['output_type'], *sorted(o.get('data', {}))) for o in c.outputs]
            for c in nb.cells if c.cell_type == 'code'}


def differences(old, new):
    "One line a cell whose stored outputs are of another kind than the fresh ones."
    first = {c.id: next((l for l in c.source.splitlines() if l.strip() and not l.startswith('#|')), '') for c in new.cells}
    stored, fresh = kinds(old), kinds(new)
    return [f'cell {i} ({first[i]}): stored {stored[i]}, fresh {fresh[i]}' for i in fresh if fresh[i] != stored[i]]


def one(path, flags, check, timeout):
    "Run one notebook; store or compare. Gives (path, seconds, what was wrong)."
    began, wrong = time.time(), []
    skip = skipped(path, flags)
    old, nb = nbformat.read(path, 4), nbformat.read(path, 4)
    try:
        if skip is not None: execute(nb, path, skip, timeout)
    except (CellExecutionError, TimeoutError, RuntimeError) as e: wrong = [str(e)]
    else:
        plain(nb)
        if check: wrong = differences(old, nb)
        else:
            nbformat.write(nb, path)
            with contextlib.redirect_stdout(io.StringIO()): nbdev_clean(fname=str(path))
    return path, time.time() - began, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebooks', nargs='*', type=Path, help='notebooks to run (default: all of nbs)')
    parser.add_argument('-j', '--jobs', type=int, default=1, help='notebooks run side by side')
    parser.add_argument('--check', action='store_true', help='compare with what is stored, write nothing')
    parser.add_argument('--timeout', type=int, default=300, help='seconds for one cell')
    args = parser.parse_args()
    paths = [p.resolve() for p in args.notebooks] or sorted((ROOT/'nbs').glob('[!_.]*.ipynb'))
    os.chdir(ROOT)
    job = partial(one, flags=set(get_config().tst_flags.split()), check=args.check, timeout=args.timeout)
    with ProcessPoolExecutor(max(1, min(args.jobs, len(paths)))) as pool:
        failed = 0
        for path, seconds, wrong in pool.map(job, paths):
            print(f'{path.name:28}{seconds:6.1f} s  {"; ".join(wrong) if wrong else "ok"}', flush=True)
            failed += bool(wrong)
    sys.exit(bool(failed))


if __name__ == '__main__': main()
