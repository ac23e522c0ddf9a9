"The house is in order: notebooks, package, README and settings say the same."
import ast, json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest
import yaml

from ppqg_nb.book import CHAPTERS as CHAPTERS_ON_THE_MAP, here

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('[!_.]*.ipynb'))
CHAPTERS = [p for p in NOTEBOOKS if p.stem != 'index']
LABELS = '''eq-task eq-resample eq-stft eq-mel eq-logmel eq-patches eq-vggish eq-audio-tokens eq-pyramid eq-vh eq-flatten
    eq-ve eq-audio-pool eq-prototypes eq-pac-scores eq-pac-loss eq-prompt eq-assign eq-hard eq-queries
    eq-visual-contrast eq-decoder eq-mask-logits eq-upsample eq-class eq-compose eq-loss-cls eq-loss-mask
    eq-loss'''.split()

posix = pytest.mark.skipif(sys.platform == 'win32', reason="nbdev writes the platform's own line ends and separators")
each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
each_chapter = pytest.mark.parametrize('path', CHAPTERS, ids=lambda path: path.stem)


def cells(path, kind): return [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]


def source(cell): return ''.join(cell['source'])


def run(code, folder):
    "Run Python code in a folder, outside of nbdev's testing mode."
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def copy(tmp_path):
    "The notebooks, the package and the settings in a folder of their own."
    shutil.copy(ROOT/'settings.ini', tmp_path)
    ignore = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '.quarto')
    for name in ('nbs', 'ppqg_nb'): shutil.copytree(ROOT/name, tmp_path/name, symlinks=True, ignore=ignore)
    return tmp_path


@posix
def test_package_is_what_the_notebooks_export(copy):
    def modules(root): return {str(p.relative_to(root)): p.read_bytes() for p in (root/'ppqg_nb').rglob('*.py')}
    for name in modules(copy): (copy/name).unlink()
    run('from nbdev.doclinks import nbdev_export; nbdev_export()', copy)
    ours, fresh = modules(ROOT), modules(copy)
    assert sorted(ours) == sorted(fresh)
    assert [name for name in ours if ours[name] != fresh[name]] == []


@posix
def test_notebooks_are_clean(copy):
    run('from nbdev.clean import nbdev_clean; nbdev_clean()', copy)
    assert [p.name for p in NOTEBOOKS if p.read_bytes() != (copy/'nbs'/p.name).read_bytes()] == []


def test_readme_is_what_the_index_says(): run("import runpy, sys; sys.argv[1:] = ['--check']; "
    "runpy.run_path('.ci/readme.py', run_name='__main__')", ROOT)


def test_every_formula_stands_in_one_chapter():
    found = [label for p in CHAPTERS for c in cells(p, 'markdown') for label in re.findall(r'\{#(eq-[a-z-]+)\}', source(c))]
    assert len(LABELS) == 29 and set(LABELS) - set(found) == set()
    assert sorted(label for label in set(found) if found.count(label) > 1) == []


@pytest.mark.parametrize('number', CHAPTERS_ON_THE_MAP)
def test_the_map_at_the_head_of_a_chapter_is_the_one_that_is_drawn(number):
    path = ROOT/'nbs'/f"{number}_{CHAPTERS_ON_THE_MAP[number].replace(' ', '_')}.ipynb"
    [cell] = [c for c in cells(path, 'code') if source(c).endswith(f"here('{number}')")]
    assert ''.join(cell['outputs'][0]['data']['text/html']) == here(number).data


@pytest.mark.parametrize('number', CHAPTERS_ON_THE_MAP)
def test_a_chapter_ends_with_what_there_is_now_and_exercises(number):
    path = ROOT/'nbs'/f"{number}_{CHAPTERS_ON_THE_MAP[number].replace(' ', '_')}.ipynb"
    found = json.loads(path.read_text(encoding='utf-8'))['cells']
    [now] = [i for i, c in enumerate(found) if source(c).startswith('## What we have now')]
    [asked] = [i for i, c in enumerate(found) if source(c).startswith('## Exercises')]
    between = found[now:asked]
    assert any('image/png' in o.get('data', {}) for c in between for o in c.get('outputs', [])) or '@fig-' in ''.join(map(source, between))
    solved = [c for c in found[asked:] if source(c).startswith('#| code-fold: true')]
    assert 2 <= len(solved) <= 4 and all(c['metadata'].get('jupyter') == {'source_hidden': True} for c in solved)
    assert [c['id'] for c in solved if not re.search(r'\b(assert |test_\w+\(|ExceptionExpected)', source(c))] == []


def test_references_point_somewhere():
    text = '\n'.join(source(c) for p in NOTEBOOKS for c in cells(p, 'markdown') + cells(p, 'code'))
    labels = set(re.findall(r'\{#((?:eq|fig|sec|tbl)-[\w-]+)', text)) | set(re.findall(r'^#\| label: *(\S+)', text, re.M))
    assert set(re.findall(r'(?<![\w`])@((?:eq|fig|sec|tbl)-[\w-]*\w)', text)) - labels == set()


@each_chapter
def test_figures_have_label_caption_and_alternative_text(path):
    def bare(cell):
        if not any('image/png' in o.get('data', {}) for o in cell['outputs']): return []
        return [key for key in ('label: fig-', 'fig-cap:', 'fig-alt:') if f'#| {key}' not in source(cell)]
    assert {c['id']: bare(c) for c in cells(path, 'code') if bare(c)} == {}


@each_notebook
def test_cells_fit_on_a_screen(path):
    assert [c['id'] for c in cells(path, 'code') if len(source(c).splitlines()) > 30] == []


@each_notebook
def test_no_path_of_the_machine_it_was_made_on(path):
    text = '\n'.join(source(c) for c in json.loads(path.read_text(encoding='utf-8'))['cells'])
    for c in cells(path, 'code'):
        for o in c['outputs']:
            data = o.get('data', {})
            text += '\n'.join(map(''.join, [o.get('text', []), data.get('text/plain', []), data.get('text/html', [])]))
    assert re.findall(r'(?<![\w.>)])/(?:home|root|work|opt|tmp|Users|private|mnt)/[\w./-]+', text) == []


@each_notebook
def test_metadata_is_plain(path):
    metadata = json.loads(path.read_text(encoding='utf-8'))['metadata']
    assert metadata['kernelspec'] == dict(display_name='python3', language='python', name='python3')
    assert set(metadata) <= {'kernelspec', 'widgets'}


def test_imports_go_downwards():
    "A module imports only modules of chapters before its own."
    number = {m[1]: p.name.split('_')[0] for p in CHAPTERS for c in cells(p, 'code')
              for m in re.finditer(r'^#\| *default_exp +(\w+)', source(c), re.M)}
    upwards = []
    for module in number:
        for node in ast.walk(ast.parse((ROOT/'ppqg_nb'/f'{module}.py').read_text(encoding='utf-8'))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom): names = [('ppqg_nb.' if node.level else '') + (node.module or '')]
            for name in names:
                head, _, tail = name.partition('.')
                if head == 'ppqg_nb' and tail in number and number[tail] >= number[module]: upwards.append((module, tail))
    assert upwards == []


def test_sidebar_lists_every_notebook():
    site = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    listed = [page['href'] for part in site for page in part.get('contents', [part])]
    assert sorted(listed) == [p.name for p in NOTEBOOKS]


def test_torch_torchvision_and_torchaudio_import_together():
    run('import torch, torchvision, torchaudio; torchvision.ops.nms(torch.rand(1, 4), torch.rand(1), 0.5)', ROOT)
