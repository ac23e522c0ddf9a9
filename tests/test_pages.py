"The pages that are made from the chapters say what the chapters say now."
import json, re
from pathlib import Path

import pytest

NBS = Path(__file__).resolve().parent.parent/'nbs'


def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']


def shown(name):
    "All Markdown that the cells of a page gave when it was last run"
    return '\n'.join(''.join(o['data']['text/markdown']) for c in cells(NBS/name) if c['cell_type'] == 'code'
                     for o in c['outputs'] if 'text/markdown' in o.get('data', {}))


def test_list_of_pictures_is_whole():
    drawn = [label for p in sorted(NBS.glob('[0-3]*.ipynb')) for c in cells(p) if c['cell_type'] == 'code'
             for label in re.findall(r'^#\| *label: *(fig-\S+)', ''.join(c['source']), re.M)]
    assert re.findall(r'\.ipynb#(fig-[\w-]+)\)', shown('42_pictures.ipynb')) == drawn, 'run .ci/notebooks.py nbs/42_pictures.ipynb'


@pytest.mark.parametrize('name', ['40_notation.ipynb', '40a_glossary.ipynb', '41_note.ipynb', '42_pictures.ipynb'])
def test_links_lead_to_a_chapter(name):
    files = set(re.findall(r'\]\(([\w.]+\.ipynb)', shown(name)))
    assert files and files <= {p.name for p in NBS.glob('*.ipynb')}
