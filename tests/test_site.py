"The site: its pages as nbdev hands them to Quarto, previewed by pandoc and looked over; and the check sees what it is for."
import importlib.util, os, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location('pages', ROOT/'.ci'/'pages.py')
pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pages)


def seen(folder):
    "The check in a browser; skipped where there is none, except in CI."
    try: return [*pages.seen(folder)]
    except (ImportError, FileNotFoundError) as e:
        (pytest.fail if os.environ.get('CI') else pytest.skip)(f'{e}; .ci/run installs what this test needs.')


@pytest.mark.timeout(900)
def test_pages(tmp_path):
    "Every page can be made, and nothing is wrong with it."
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    command = [sys.executable, ROOT/'.ci'/'pages.py', 'preview', tmp_path]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [*pages.static(tmp_path)] == []
    assert seen(tmp_path) == []


@pytest.fixture
def wrong(tmp_path):
    "A folder with one page, `index.html`, whose body is given."
    def made(body, style=''):
        text = f'<!doctype html><html><head><style>{style}</style></head><body><main>{body}</main></body></html>'
        (tmp_path/'index.html').write_text(text, encoding='utf-8')
        pages.read.cache_clear()
        return tmp_path
    return made


@pytest.mark.parametrize('body, what', [
    ('<a href="nowhere.html">x</a>', 'nowhere.html: no such file'),
    ('<a href="#there">x</a>', '#there: no such place'),
    (f'<a href="{pages.HOST}/index.html#there">x</a>', 'no such place'),
    ('<a href="/ppqg_nb/nowhere.html">x</a>', 'no such file'),
    ('<img src="gone.png" alt="a bell">', 'gone.png: no such file'),
    ('<img src="data:image/png;base64,AA==">', 'without alternative text'),
    ('<script src="https://cdn.example.org/x.js"></script>', 'loads https://cdn.example.org/x.js'),
    ('<pre><code>#| label: fig-x\nplot()</code></pre>', 'a directive shows'),
    ('<p>::: {.callout-note}</p>', 'a div shows'),
    ('<p>as ?@eq-task says</p>', 'a reference that points nowhere'),
    ('<p>as <span class="citation">@fig-x</span> shows</p>', 'a reference that points nowhere'),
    ('<p>$$ a = b $$</p>', 'an equation shows'),
    (f'<img alt="much" src="data:image/png;base64,{"A" * pages.LIMIT}">', '3.0 MB')])
def test_a_fault_is_found(wrong, body, what):
    [(page, found)] = pages.static(wrong(body))
    assert page == 'index' and what in found


def test_a_page_in_order(wrong):
    body = ('<h2 id="there">x</h2><a href="#there">x</a><a href="https://example.org/y">y</a>'
            '<code>#| export @eq-task</code><img alt="a dot" src="data:image/png;base64,AA==">')
    assert [*pages.static(wrong(body))] == []


def test_what_only_a_browser_sees(wrong):
    style = '''body { margin: 0; color: #777; background: #fff } h2 { font-size: 24px } .faint { color: #000; opacity: .5 }
        .wide { width: 600px } @media (prefers-color-scheme: dark) { body { background: #111 } i { color: #555 } }'''
    body = '''<p>grey</p><h2>large grey</h2><p class="faint">half black</p><i>by night</i><p class="wide">a wide one</p>
        <p class="notebook"><a href="#" style="color: #06c">thumb</a></p>'''
    found = [what for _, what in seen(wrong(body, style))]
    for what in ('contrast 4.48: grey', 'contrast 3.98: half black', 'wider than a phone (600 px): p a wide one',
                 'too small to touch: thumb', 'by night: contrast 2.53: by night'):
        assert what in found
    assert not any('large grey' in what for what in found)
