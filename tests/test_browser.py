"JupyterLab in a real browser: chapters run from top to bottom without an error, and the explorer moves by keyboard."
import io, json, os, re, shutil, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = '01_audio', '07_grouping', '26_explorer'
INSTALLED = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-background-networking', '--disable-component-update',
         '--disable-sync']


def missing(why):
    "Skip; in CI, which has to install it, fail."
    (pytest.fail if os.environ.get('CI') else pytest.skip)(f'{why}; .ci/run installs what this test needs.')


@pytest.fixture(scope='module')
def browser():
    try: from playwright.sync_api import sync_playwright
    except ImportError: missing('Playwright is not installed')
    with sync_playwright() as p:
        own = p.chromium.executable_path
        path = own if os.path.exists(own) else next(filter(None, map(shutil.which, INSTALLED)), None)
        if path is None: missing('There is no Chromium: Playwright has none, and there is no ' + ', '.join(INSTALLED))
        with p.chromium.launch(executable_path=path, args=FLAGS) as chromium: yield chromium


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
    "A port, and an environment in which JupyterLab knows no user, asks for no token, and keeps all cells on the page."
    home = tmp_path_factory.mktemp('home')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    server = dict(ip='127.0.0.1', port=port, port_retries=0, allow_root=True, open_browser=False)
    config = dict(ServerApp=server, IdentityProvider=dict(token=''))
    extension = lambda name, part: home/'settings'/'@jupyterlab'/f'{name}-extension'/f'{part}.jupyterlab-settings'
    for path, content in ((home/'config'/'jupyter_server_config.json', config),
                          (extension('notebook', 'tracker'), dict(windowingMode='none')),
                          (extension('apputils', 'notification'), dict(fetchNews='false'))):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))
    env = dict(os.environ, PYTHONPATH=str(ROOT), JUPYTER_CONFIG_DIR=str(home/'config'),
               JUPYTERLAB_SETTINGS_DIR=str(home/'settings'), JUPYTER_DATA_DIR=str(home/'data'),
               JUPYTER_RUNTIME_DIR=str(home/'run'), IPYTHONDIR=str(home/'ipython'))
    return port, {k: v for k, v in env.items() if k not in ('IN_TEST', 'MPLBACKEND')}


@contextmanager
def serving(command, folder, settings):
    "Run a command that starts JupyterLab, and wait until it answers; gives its address."
    port, env = settings
    address, log = f'http://127.0.0.1:{port}', folder/'server.log'
    with open(log, 'w') as out, subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out) as process:
        try:
            for _ in range(600):
                assert process.poll() is None, log.read_text()
                try: urllib.request.urlopen(f'{address}/api', timeout=5).close()
                except OSError: time.sleep(.2)
                else: break
            yield address
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def opened(browser, address, name):
    "A page with the notebook, its kernel at rest."
    with browser.new_context(viewport=dict(width=1200, height=1000)) as context:
        page = context.new_page()
        page.goto(f'{address}/lab/tree/{name}.ipynb?reset', timeout=120_000)
        idle(page)
        yield page


def idle(page):
    "Wait until the kernel is there, and at rest, as the status bar says."
    page.get_by_text(re.compile(r'\| Idle$')).wait_for(timeout=280_000)


def saved(path):
    "The code cells of a notebook on disk; none while it is being written."
    try: return [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    except ValueError: return []


def run_all(page, path):
    "Run → Run All Cells; in what JupyterLab saves then, each cell has a number and none an error."
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    until = time.monotonic() + 280
    while True:                         # JupyterLab saves by itself too: a file may be of the time before the last cell
        page.wait_for_timeout(1000)
        idle(page)
        page.get_by_role('menuitem', name='File', exact=True).click()
        page.locator('.lm-Menu-item[data-command="docmanager:save"]').click()
        cells = saved(path)
        assert [o['evalue'] for c in cells for o in c['outputs'] if o['output_type'] == 'error'] == []
        if cells and all(c['execution_count'] for c in cells): return
        assert time.monotonic() < until, [c['id'] for c in cells if not c['execution_count']]


def keep(page, name):
    "A screenshot, if SCREENSHOTS names a folder for it."
    if not os.environ.get('SCREENSHOTS'): return
    folder = Path(os.environ['SCREENSHOTS'])
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder/f'{name}.png')


def pixels(image): return np.array(Image.open(io.BytesIO(image.screenshot())))


def changed(image, before):
    "The pixels of an image on the page once they are others than before."
    for _ in range(100):
        now = pixels(image)
        if now.shape != before.shape or (now != before).any(): return now
        time.sleep(.1)
    pytest.fail('The picture did not change.')


def walk(page):
    "Use the explorer as somebody without a mouse does, and click once."
    look, stage = page.get_by_role('slider', name='look'), page.get_by_role('combobox', name='stage')
    image, status = page.locator('.ppqg img'), page.locator('.ppqg [role=status]')
    look.scroll_into_view_if_needed()
    first = pixels(image)
    look.focus()
    page.keyboard.press('ArrowRight')
    second = changed(image, first)
    assert look.get_attribute('aria-valuetext') == '0.50 s'
    page.keyboard.press('ArrowLeft')
    assert (changed(image, second) == first).all()
    assert page.evaluate('document.activeElement.type') == 'range'           # JupyterLab has not taken the key for itself
    said = status.inner_text()
    stage.select_option('query ownership')
    changed(image, first)
    assert status.inner_text() != said and 'query' in image.get_attribute('alt')
    row, before = page.get_by_role('slider', name='row').input_value(), pixels(image)
    box = image.bounding_box()
    page.mouse.click(box['x'] + .2*box['width'], box['y'] + .7*box['height'])
    changed(image, before)
    assert page.get_by_role('slider', name='row').input_value() != row
    assert page.get_by_role('combobox', name='sound').is_disabled()


@pytest.mark.timeout(600)
@pytest.mark.parametrize('name', CHAPTERS)
def test_chapter_in_jupyterlab(name, browser, settings, tmp_path):
    for part in ('nbs', 'tests/golden'): shutil.copytree(ROOT/part, tmp_path/part, symlinks=True)
    command = [sys.executable, '-m', 'jupyterlab', '--ServerApp.root_dir=' + str(tmp_path/'nbs')]
    with serving(command, tmp_path, settings) as address, opened(browser, address, name) as page:
        run_all(page, tmp_path/'nbs'/f'{name}.ipynb')
        if name == '26_explorer': walk(page)
        keep(page, name)


@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform == 'win32', reason='signals of POSIX')
def test_ppqg_explore(browser, settings, tmp_path):
    "The command opens what it says, and ends when it is asked to."
    command = [sys.executable, '-m', 'ppqg_nb.workshop', 'explore', '--no-browser']
    with serving(command, tmp_path, settings) as address, opened(browser, address, 'ppqg_explore') as page:
        run_all(page, tmp_path/'ppqg_explore.ipynb')
        walk(page)
        keep(page, 'ppqg_explore')
    with pytest.raises(OSError): urllib.request.urlopen(f'{address}/api', timeout=5)
