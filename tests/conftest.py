"Plain `pytest` runs two processes of one thread each; no test may take longer than five minutes."
import ctypes, gc, os, sys

for _name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'): os.environ.setdefault(_name, '1')
os.environ.setdefault('MPLBACKEND', 'Agg')
os.environ.setdefault('PYTEST_TIMEOUT', '300')

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    "Two processes, unless -n or --pdb says something else."
    if hasattr(config, 'workerinput') or not config.pluginmanager.hasplugin('xdist'): return
    option = config.option
    if option.numprocesses is None and not option.usepdb and not option.collectonly: option.numprocesses = 2


@pytest.fixture(autouse=True)
def seeded():
    "Every test starts from the same random numbers and leaves torch's settings as it found them."
    import torch
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)


@pytest.fixture(autouse=True, scope='module')
def memory_given_back():
    "What a file of tests has freed goes back to the system: glibc keeps it otherwise, and two processes fill a small machine."
    yield
    gc.collect()
    if sys.platform == 'linux': getattr(ctypes.CDLL(None), 'malloc_trim', lambda pad: 0)(0)
