#!/usr/bin/env python3
"""The pages of the book: seen without Quarto, and looked over, whether previewed or built.

    .ci/pages.py preview FOLDER [nbs/01_audio.ipynb ...]   pages much as Quarto makes them: nbdev's own step, then pandoc
    .ci/pages.py check FOLDER                              print what is wrong with them; exit status 1 if anything is
    .ci/pages.py look FOLDER SHOTS [01_audio ...]          screenshots, 1280 and 390 px wide, by day and by night
    .ci/pages.py index FOLDER                              write llms.txt: every page, and one line on what it is for
"""
import argparse, base64, html, os, re, shutil, subprocess, sys, tempfile, warnings
from contextlib import contextmanager
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
SITE = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']
HOST = 'https://ppqg-nb.github.io/ppqg_nb'
BROWSERS = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-background-networking', '--disable-component-update',
         '--disable-sync']


def entries():
    "The sidebar: (part, text, notebook) of each page that is there, in order."
    for item in SITE['sidebar']['contents']:
        for page in item.get('contents', [item]):
            if (NBS/page['href']).exists(): yield item.get('section'), page['text'], NBS/page['href']


def address(path):
    "The page that nbdev makes of a notebook."
    return re.sub(r'^\d+\w*?_', '', Path(path).stem) + '.html'


# Preview: what nbdev hands to Quarto, as one Markdown text for pandoc

def options(cell):
    "The `#|` lines of a code cell as a dict, and the lines below them."
    lines = cell.source.splitlines()
    n = next((i for i, line in enumerate(lines) if not line.startswith('#|')), len(lines))
    return yaml.safe_load('\n'.join(line[2:].lstrip() for line in lines[:n])) or {}, '\n'.join(lines[n:]).strip()


def fenced(text, kind=''):
    fence = '`' * max([3, *(len(run) + 1 for run in re.findall('`+', text))])
    return f'{fence}{kind}\n{text}\n{fence}'


def shown(output, option, name, files):
    "One output of a code cell as Markdown. Pictures are written to the folder `files`."
    data = {mime: ''.join(v) if isinstance(v, list) else v for mime, v in output.get('data', {}).items()}
    kind = next((kind for kind in ('png', 'svg+xml') if f'image/{kind}' in data), None)
    if kind:
        picture = files/f'{name}.{kind[:3]}'
        files.mkdir(exist_ok=True)
        picture.write_bytes(base64.b64decode(data['image/png']) if kind == 'png' else data['image/svg+xml'].encode())
        alt = html.escape(option.get('fig-alt', '')).replace('\\', '\\\\')
        label = option.get('label', '')
        return (f"![{option.get('fig-cap', '')}]({files.name}/{picture.name})"
                f"{{{'#' + label if label.startswith('fig-') else ''}" + (f' alt="{alt}"' if alt else '') + '}')
    if 'text/html' in data: return '```{=html}\n' + data['text/html'] + '\n```'
    if 'text/markdown' in data: return data['text/markdown']
    text = data.get('text/plain', output.get('text', ''))
    return fenced(re.sub(r'\x1b\[[0-9;]*m', '', ''.join(text)).rstrip())


def code(cell, name, files):
    "A code cell as Markdown."
    option, source = options(cell)
    parts = [':::: {.cell}']
    if option.get('echo', True) and source:
        fold = option.get('code-fold')
        summary = option.get('code-summary', 'Code')
        if fold: parts.append(f"<details{' open' if fold == 'show' else ''}><summary>{summary}</summary>")
        parts.append(fenced(source, 'python'))
        if fold: parts.append('</details>')
    for i, output in enumerate(cell.get('outputs', [])):
        part = shown(output, option, f'{name}-{i}', files)
        if option.get('output') != 'asis':
            kind = 'cell-output-display' if 'data' in output else 'cell-output .cell-output-stdout'
            part = f'::: {{.{kind}}}\n{part}\n:::'
        parts.append(part)
    return '\n\n'.join(parts + ['::::'])


def numbered(text):
    "Equations and figures numbered, references to those of this page as links; chapter.lua sees to the others."
    number, kind = {}, dict(eq='Eq.', fig='Figure')
    for label in re.findall(r'\{#((?:eq|fig)-[\w-]+)', text):
        number.setdefault(label, 1 + sum(other[:2] == label[:2] for other in number))
    text = re.sub(r'\$\$((?:(?!\$\$).)*?)\$\$\s*\{#(eq-[\w-]+)[^}]*\}',
                  lambda m: rf'[$${m[1].rstrip()} \qquad({number[m[2]]})$$]{{#{m[2]}}}', text, flags=re.S)
    text = re.sub(r'!\[((?:(?!\]\().)*)\](\([^)]*\)\{#(fig-[\w-]+))',
                  lambda m: f'![Figure {number[m[3]]}: {m[1]}]{m[2]}', text)
    def link(m):
        return f"[{kind[m[1].split('-')[0]]} {number[m[1]]}](#{m[1]})" if m[1] in number else m[0]
    return re.sub(r'(?<![\w`\\])@((?:eq|fig)-[\w-]*\w)', link, text)


def processed(path):
    "The notebook after nbdev's processors, which the docs build runs, and its title and description."
    from execnb.nbio import read_nb
    from nbdev.processors import FilterDefaults
    nb = read_nb(path)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        FilterDefaults()(nb)
    return nb.frontmatter_, [c for c in nb.cells if c.cell_type != 'raw' and c.source]


def markdown(cells, stem, folder):
    "The cells as one Markdown text."
    parts = []
    for i, cell in enumerate(cells):
        if cell.cell_type == 'code': parts.append(code(cell, i, folder/f'{stem}_files'))
        else: parts.append(cell.source)
    return numbered('\n\n'.join(parts))


def pandoc(text, name, *more):
    "HTML of a Markdown text, and what pandoc complains of; chapter.lua sees a file of this name."
    import pypandoc
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder)/name).write_text(text, encoding='utf-8')
        command = [pypandoc.get_pandoc_path(), '-f', 'markdown-yaml_metadata_block', '-t', 'html5', '--mathml', *more,
                   '--lua-filter', NBS/'chapter.lua', Path(folder)/name]
        done = subprocess.run(command, capture_output=True, text=True, encoding='utf-8', check=True)
    return done.stdout, done.stderr.strip()


def variables(theme):
    "The colours of a theme as CSS variables."
    scss = (NBS/f'{theme}.scss').read_text(encoding='utf-8')
    return ''.join(f'--{name}: {value}; ' for name, value in re.findall(r'^\$([\w-]+): (.*);', scss, re.M))


def highlighting(theme):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder)/'css.html').write_text('$highlighting-css$', encoding='utf-8')
        return pandoc('```python\npass\n```', 'css', '--template', Path(folder)/'css.html',
                      '--syntax-highlighting', NBS/f'{theme}.theme')[0]


def stylesheet():
    "What Quarto's own style sheet would do, roughly, with the colours and the highlighting that we give it."
    themes = [f':root {{ {variables(t)} }}\n{highlighting(t)}' for t in ('light', 'dark')]
    layout = (ROOT/'.ci'/'preview.css').read_text(encoding='utf-8')
    return f'{themes[0]}\n@media (prefers-color-scheme: dark) {{ {themes[1]} }}\n{layout}'


PAGE = '''<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} – ppqg_nb</title><meta name="description" content="{description}"><link rel="icon" href="images/favicon.svg">
<link rel="stylesheet" href="preview.css"><link rel="stylesheet" href="styles.css">
</head><body>
<header><a href="index.html"><img src="images/logo.svg" alt="{logo}" height="32"> ppqg_nb</a></header>
<div id="quarto-content"><nav id="quarto-sidebar" aria-label="Chapters">{sidebar}</nav>
<main><h1>{title}</h1><div class="description">{visible}</div>
{body}
<nav class="page-navigation" aria-label="Before and after">{around}</nav></main></div>
<footer>{footer}</footer></body></html>
'''


def sidebar(pages, own):
    part, lines = None, []
    for section, text, path in pages:
        if section != part: lines.append(f'<p>{section}</p>')
        part, here = section, ' aria-current="page"' if path == own else ''
        lines.append(f'<a href="{address(path)}"{here}>{text}</a>')
    return '\n'.join(lines)


def around(pages, own):
    at = next((i for i, p in enumerate(pages) if p[2] == own), None)
    if at is None: return ''
    near = [(at - 1, '← '), (at + 1, '')]
    return ''.join(f'<a href="{address(pages[i][2])}">{arrow}{pages[i][1]}{"" if arrow else " →"}</a>'
                   for i, arrow in near if 0 <= i < len(pages))


def preview(folder, notebooks=()):
    "Write the pages of all notebooks, or of these, and what belongs to them; gives what pandoc could not read."
    from nbdev.doclinks import nbglob
    folder, pages, wrong = folder.resolve(), list(entries()), []
    (folder/'notebooks').mkdir(parents=True, exist_ok=True)
    for path in nbglob(NBS, func=Path, file_glob='', file_re=''):                # what nbdev hands to Quarto
        if path.suffix not in ('.ipynb', '.yml'):
            (folder/path.relative_to(NBS)).parent.mkdir(exist_ok=True)
            shutil.copy(path, folder/path.relative_to(NBS))
    (folder/'preview.css').write_text(stylesheet(), encoding='utf-8')
    def write(path, front, text):
        body, complaint = pandoc(text, path.name)
        if complaint: wrong.append(f'{path.name}: {complaint}')
        body = re.sub(r'(?<=href=")(\w+)\.ipynb', lambda m: address(m[1]), body)
        (folder/address(path)).write_text(PAGE.format(
            title=html.escape(front['title']), description=html.escape(front.get('description', '')), body=body,
            visible=pandoc(front.get('description', ''), 'description')[0],
            logo=SITE['navbar']['logo-alt'], sidebar=sidebar(pages, path), around=around(pages, path),
            footer=SITE['page-footer']['left']), encoding='utf-8')
    before = Path.cwd()
    os.chdir(NBS)
    try:
        for path in notebooks or [path for *_, path in pages]:
            shutil.copy(path, folder/'notebooks')
            front, cells = processed(path)
            write(path, front, markdown(cells, path.stem, folder))
    finally: os.chdir(before)
    _, front, text = (NBS/'404.qmd').read_text(encoding='utf-8').split('---\n', 2)
    write(NBS/'404.qmd', yaml.safe_load(front), text)
    index(folder)
    return wrong


def index(folder):
    "Write llms.txt: every page with one line; the pages as plain text, where Quarto has written them."
    front = read(folder/'index.html')
    lines, part = ['# ppqg_nb', '', f'> {front.description}'], None
    for section, text, path in entries():
        page = folder/address(path)
        if not page.exists(): continue
        if section != part: lines += ['', f'## {section}', '']
        part, plain = section, page.with_suffix('.llms.md')
        if section: lines.append(f'- [{text}]({HOST}/{(plain if plain.exists() else page).name}): {read(page).description}')
    (folder/'llms.txt').write_text('\n'.join(lines) + '\n', encoding='utf-8')


# The check, without a browser

class Reader(HTMLParser):
    "What a page of HTML is made of, as far as the check asks."
    SKIPPED = 'script', 'style', 'code', 'pre', 'math', 'template'

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.parts, self.bare, self.prose, self.listings = set(), [], [], [], [], []
        self.description, self.inside = '', []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[key] for key in ('id', 'name') if attrs.get(key)}
        if tag == 'a' and attrs.get('href'): self.links.append(attrs['href'])
        if tag == 'meta' and attrs.get('name') == 'description': self.description = attrs.get('content', '')
        if tag == 'link' and attrs.get('rel') in ('stylesheet', 'icon'): self.parts.append(attrs['href'])
        if attrs.get('src'): self.parts.append(attrs['src'])
        if tag == 'img' and not attrs.get('alt'): self.bare.append(attrs.get('src', '')[:60])
        if tag in self.SKIPPED: self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self.inside: self.inside.remove(tag)

    def handle_data(self, data):
        if 'pre' in self.inside: self.listings.append(data)
        elif not self.inside: self.prose.append(data)


@cache
def read(page):
    reader = Reader()
    reader.feed(page.read_text(encoding='utf-8'))
    return reader


LEAKS = {r'^#\| ?[\w-]+': 'a directive', r':::': 'a div', r'\{#(?:eq|fig|tbl|sec)-': 'a label', r'\$\$.*': 'an equation',
         r'\?@|(?<![\w.])@(?:eq|fig|tbl|sec)-\w+': 'a reference that points nowhere'}
LIMIT = 3_000_000


def here(target, page):
    "The file and the anchor that a link means, or None if it leads to another host."
    for root in (HOST, urlsplit(HOST).path):
        if target.startswith(root + '/') or target == root: target = './' + target[len(root) + 1:]
    parts = urlsplit(target)
    if parts.scheme or parts.netloc: return None
    file = page.parent/unquote(parts.path).lstrip('/') if parts.path else page
    return (file/'index.html' if file.is_dir() else file), unquote(parts.fragment)


def dead(page):
    "Links and parts of a page that are not there."
    for target in read(page).links + read(page).parts:
        if target.startswith('data:') or (found := here(target, page)) is None: continue
        file, anchor = found
        if not file.exists(): yield f'{target}: no such file'
        elif anchor and file.suffix == '.html' and anchor not in read(file).ids: yield f'{target}: no such place'


def foreign(page):
    "What a page loads from other hosts."
    return [f'loads {part}' for part in read(page).parts if urlsplit(part).netloc]


def leaks(page):
    reader = read(page)
    prose, listings = ''.join(reader.prose), ''.join(reader.listings)
    for pattern, what in LEAKS.items():
        text = listings if pattern.startswith('^') else prose
        for m in re.finditer(pattern, text, re.M): yield f'{what} shows: {text[m.start():m.start() + 50]!r}'


def weight(page):
    "Bytes of a page with its pictures and sounds; scripts and style sheets, which all pages share, apart."
    parts = {found[0] for part in read(page).parts if not part.startswith('data:') and (found := here(part, page))}
    return page.stat().st_size + sum(p.stat().st_size for p in parts if p.exists() and p.suffix not in ('.css', '.js'))


def static(folder):
    "What is wrong with the pages of a folder: (page, what)."
    for page in sorted(folder.glob('*.html')):
        for what in dead(page): yield page.stem, what
        for what in foreign(page): yield page.stem, what
        for what in leaks(page): yield page.stem, what
        for picture in read(page).bare: yield page.stem, f'a picture without alternative text: {picture}'
        if weight(page) > LIMIT: yield page.stem, f'{weight(page) / 1e6:.1f} MB'
    listed = (folder/'llms.txt').read_text(encoding='utf-8') if (folder/'llms.txt').exists() else ''
    for *_, path in entries():
        name = address(path)
        if (folder/name).exists() and name != 'index.html' and not re.search(rf'/{name[:-5]}\.\S+\): \S', listed):
            yield name[:-5], 'llms.txt has no line for it'


# The check, in a browser

@contextmanager
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        own = p.chromium.executable_path
        path = own if os.path.exists(own) else next(filter(None, map(shutil.which, BROWSERS)), None)
        if path is None: raise FileNotFoundError('There is no Chromium: ' + ', '.join(BROWSERS))
        with p.chromium.launch(executable_path=path, args=FLAGS) as chromium: yield chromium


# Contrast as WCAG 2.2 computes it, of each text against what lies behind it: AA asks for 4.5, or 3 for large letters.
CONTRAST = '''() => {
  const rgba = c => { const n = c.match(/[\\d.]+/g).map(Number), unit = c.startsWith('color') ? 255 : 1
                      return [n[0] * unit, n[1] * unit, n[2] * unit, n[3] ?? 1] }
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1)
  const light = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
                       return .2126 * r + .7152 * g + .0722 * b }
  const behind = e => { const b = rgba(getComputedStyle(e).backgroundColor)
    return b[3] == 1 ? b : over(b, e.parentElement ? behind(e.parentElement) : [255, 255, 255, 1]) }
  const faint = e => (e.parentElement ? faint(e.parentElement) : 1) * getComputedStyle(e).opacity
  const found = {}, walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, style = getComputedStyle(e)
    if (!walk.currentNode.data.trim() || !e.checkVisibility({visibilityProperty: true}) || e.closest('svg')) continue
    const back = behind(e), ink = rgba(style.color), size = parseFloat(style.fontSize)
    ink[3] *= faint(e)
    const [low, high] = [light(back), light(over(ink, back))].sort((a, b) => a - b), ratio = (high + .05) / (low + .05)
    if (ratio < (size >= 24 || size >= 18.66 && style.fontWeight >= 700 ? 3 : 4.5))
      found[`${e.localName}.${e.className}`] = `contrast ${ratio.toFixed(2)}: ${walk.currentNode.data.trim().slice(0, 40)}`
  }
  return Object.values(found)
}'''
# What makes a page wider than the screen, and what in its navigation is too small for a thumb (44 px).
PHONE = '''() => {
  const wide = document.documentElement.scrollWidth, found = []
  if (wide > innerWidth) {
    const e = [...document.querySelectorAll('main *')].find(e => e.getBoundingClientRect().right >= wide - 1)
    found.push(`wider than a phone (${wide} px): ${e ? e.localName + ' ' + e.textContent.trim().slice(0, 40) : ''}`)
  }
  for (const a of document.querySelectorAll('#quarto-sidebar a, .page-navigation a, .notebook a'))
    if (a.checkVisibility() && a.getBoundingClientRect().height < 44)
      found.push(`too small to touch: ${a.textContent.trim()}`)
  return found
}'''


def opened(chromium, page, width, scheme):
    context = chromium.new_context(viewport=dict(width=width, height=844), color_scheme=scheme)
    tab = context.new_page()
    tab.goto(page.resolve().as_uri())
    return context, tab


def seen(folder):
    "What is wrong with the pages as a browser draws them: (page, what)."
    with browser() as chromium:
        for page in sorted(folder.glob('*.html')):
            context, tab = opened(chromium, page, 390, 'light')
            with context:
                found = tab.evaluate(PHONE) + tab.evaluate(CONTRAST)
                tab.emulate_media(color_scheme='dark')
                found += [f'by night: {what}' for what in tab.evaluate(CONTRAST)]
            for what in found: yield page.stem, what


def look(folder, shots, names):
    "A screenshot of each page: wide and narrow, by day and by night."
    shots.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        for page in sorted(folder.glob('*.html')):
            if names and page.stem not in names: continue
            for width in (1280, 390):
                for scheme in ('light', 'dark'):
                    context, tab = opened(chromium, page, width, scheme)
                    with context: tab.screenshot(path=shots/f'{page.stem}-{width}-{scheme}.png', full_page=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('preview', 'check', 'look', 'index'))
    parser.add_argument('folder', type=Path)
    parser.add_argument('more', nargs='*')
    args = parser.parse_args()
    if args.what == 'preview': sys.exit('\n'.join(preview(args.folder, [Path(p).resolve() for p in args.more])) or 0)
    elif args.what == 'index': index(args.folder)
    elif args.what == 'look': look(args.folder, Path(args.more[0]), args.more[1:])
    else:
        wrong = [*static(args.folder), *seen(args.folder)]
        for page, what in wrong: print(f'{page}: {what}')
        sys.exit(bool(wrong))


if __name__ == '__main__': main()
