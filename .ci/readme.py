#!/usr/bin/env python3
"""Write README.md from nbs/index.ipynb, without Quarto.

    .ci/readme.py          write it
    .ci/readme.py --check  write nothing; fail if README.md would change
"""
import json, os, re, sys
from pathlib import Path

import nbformat
from execnb.nbio import mk_cell, nb2dict, read_nb
from nbconvert import MarkdownExporter
from nbdev.processors import FilterDefaults, add_links, exec_show_docs

ROOT = Path(__file__).resolve().parent.parent


class ForReadme(FilterDefaults):
    "nbdev's processors for a page, less what depends on what is installed here."
    def base_procs(self): return [p for p in super().base_procs() if p not in (add_links, exec_show_docs)]


def readme():
    "The text of README.md."
    nb = read_nb(ROOT/'nbs'/'index.ipynb')
    ForReadme()(nb)
    front = nb.frontmatter_
    title = '\n\n'.join([f"# {front['title']}", *(f'> {v}' for v in [front.get('description')] if v)])
    cells = [mk_cell(title, 'markdown', id='title'), *(c for c in nb.cells if c.cell_type != 'raw')]
    for cell in cells:
        if cell.cell_type == 'code': cell.source = re.sub(r'^#\|.*\n', '', cell.source, flags=re.M)
        else: cell.source = re.sub(r'\]\((?!https?:|#|/)', '](nbs/', cell.source)
    page = {'cells': nb2dict(cells), 'nbformat': 4, 'nbformat_minor': 5, 'metadata': {'language_info': {'name': 'python'}}}
    for cell in page['cells']:
        if cell['cell_type'] == 'markdown': cell.pop('outputs', None), cell.pop('execution_count', None)
    text, _ = MarkdownExporter().from_notebook_node(nbformat.reads(json.dumps(page), 4))
    text = '\n'.join(line.rstrip() for line in text.splitlines())
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


def main():
    os.chdir(ROOT)
    text, path = readme(), ROOT/'README.md'
    if '--check' not in sys.argv[1:]: return path.write_text(text, encoding='utf-8', newline='\n')
    if not path.exists() or path.read_text(encoding='utf-8') != text:
        sys.exit('README.md is not what nbs/index.ipynb says: run .ci/readme.py')


if __name__ == '__main__': main()
