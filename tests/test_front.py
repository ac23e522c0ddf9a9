"The pages that a visitor reads first: links lead somewhere, commands exist, figures are those of the files."
import configparser, json, os, re, runpy, shlex
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.main import get_command

from ppqg_nb.workshop import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob('*.md'), ROOT/'ppqg_nb'/'models'/'scenes-tiny'/'README.md'])
SETTINGS = configparser.ConfigParser(delimiters=['='])
SETTINGS.read(ROOT/'settings.ini', encoding='utf-8')
SETTINGS = SETTINGS['DEFAULT']
each_page = pytest.mark.parametrize('page', PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def read(name): return (ROOT/name).read_text(encoding='utf-8')


def fenced(text, kind): return re.findall(rf'^ *```{kind}\n(.*?)^ *```', text, re.M | re.S)


def prose(text): return re.sub(r'^ *```.*?^ *```', '', text, flags=re.M | re.S)


def anchors(text):
    "The anchors that GitHub gives to the headings of a page."
    return {re.sub(r'[^\w\- ]', '', h.lower()).strip().replace(' ', '-') for h in re.findall(r'^#+ (.*)', prose(text), re.M)}


@each_page
def test_links_lead_somewhere(page):
    text, here = page.read_text(encoding='utf-8'), f"{SETTINGS['git_url']}/blob/{SETTINGS['branch']}/"
    dead = []
    for link in re.findall(r'\]\(([^)\s]+)\)', prose(text)):
        if link.startswith(here): found = (ROOT/link.removeprefix(here)).exists()
        elif re.match(r'https?://', link): continue
        elif link.startswith('#'): found = link[1:] in anchors(text)
        else: found = (page.parent/link.partition('#')[0]).exists()
        if not found: dead.append(link)
    assert dead == []


@each_page
def test_pictures_have_alternative_text(page):
    shown = re.findall(r'!\[(.*?)\]\((.*?)\)', page.read_text(encoding='utf-8'))
    assert [link for alt, link in shown if len(alt) < 20] == []


def unknown(words):
    "What is not known in a line for the shell, or None."
    name, rest = words[0], words[1:]
    if name.startswith('.ci/'): return None if os.access(ROOT/name, os.X_OK) else name
    if name in ('pip', 'pytest'): return None
    if name != 'ppqg': return None if entry_points(group='console_scripts', name=name) else name
    command = get_command(app)
    while rest and rest[0] in getattr(command, 'commands', {}): command, rest = command.commands[rest[0]], rest[1:]
    if hasattr(command, 'commands'): return ' '.join(words)
    options = {o for p in command.params for o in p.opts}
    return next((w for w in rest if w.startswith('-') and w not in options), None)


@each_page
def test_commands_exist(page):
    lines = re.split(r'\n|&&', '\n'.join(fenced(page.read_text(encoding='utf-8'), 'bash')))
    assert [line for line in lines if line.strip() and unknown(shlex.split(line, comments=True))] == []


def test_a_command_that_is_not_there_is_found():
    assert unknown(['ppqg', 'sing']) and unknown(['ppqg', 'train', 'x', '--louder']) == '--louder'
    assert unknown(['nbdev_nothing']) and unknown(['.ci/nothing'])
    assert unknown(['nbdev_export']) is unknown(['ppqg', 'data', 'check', 'DATA']) is None


def test_what_contributing_names_is_there():
    text = read('CONTRIBUTING.md')
    code = '\n'.join(p.read_text(encoding='utf-8') for folder in ('ppqg_nb', 'tests') for p in (ROOT/folder).glob('*.py'))
    names = re.findall(r'`([\w.]+)`', prose(text))
    paths = re.findall(r'`((?:nbs|tests|ppqg_nb)/[\w./]+\.\w+)`', text)
    assert len(names) > 20 and len(paths) > 5
    parts = {part for name in names if not name.endswith(('.yml', '.md')) for part in name.split('.')}
    assert [p for p in sorted(parts) if not re.search(rf'\b{p}\b', code) and unknown([p])] == []
    assert [p for p in paths if not (ROOT/p).exists()] == []


def test_citation_is_that_of_the_settings():
    cited = yaml.safe_load(read('CITATION.cff'))
    assert cited['cff-version'] == '1.2.0' and cited['message'] and cited['license'] == 'Apache-2.0'
    same = dict(title='title', version='version', abstract='description')
    assert {k: cited[k] for k in same} == {k: SETTINGS[name] for k, name in same.items()}
    assert (cited['repository-code'], cited['url']) == (SETTINGS['git_url'], SETTINGS['doc_host'] + SETTINGS['doc_baseurl'])
    assert cited['keywords'] == SETTINGS['keywords'].split(', ')
    assert cited['authors'] == [dict(name=SETTINGS['author'])]
    [paper] = cited['references']
    readme = read('README.md')
    assert f"title     = {{{paper['title']}}}" in readme and paper['url'] in readme and str(paper['year']) in readme


def test_changelog_has_this_version():
    versions = re.findall(r'^## \[(.*?)\] - (?:unreleased|\d{4}-\d\d-\d\d)$', read('CHANGELOG.md'), re.M)
    assert SETTINGS['version'] in versions and f"\n[{SETTINGS['version']}]: " in read('CHANGELOG.md')


@pytest.mark.parametrize('name', ['bug', 'idea'])
def test_issue_forms_are_forms(name):
    form = yaml.safe_load(read(f'.github/ISSUE_TEMPLATE/{name}.yml'))
    assert form['name'] and form['description']
    ids = [part['id'] for part in form['body']]
    assert len(set(ids)) == len(ids) and all(part['attributes']['label'] for part in form['body'])


def test_figures_of_the_readme_are_those_of_the_files():
    text = ' '.join(read('README.md').split())
    def media(name): return json.loads(read(f'ppqg_nb/media/{name}.json'))
    scores, noise = media('scenes-tiny.listening'), media('scenes-tiny.robustness')
    single, known, new = (scores['scores'][f'{s} M_J']['model'][0] for s in ('single', 'test1', 'test2'))
    assert f"In {scores['clips']} scenes each it reaches M_J {single:.3f} where" in text
    assert f'{known:.3f} on photographs that it was trained on' in text
    assert f'{new:.3f} on photographs that it has not met' in text
    white = noise['disturbances']['white noise']
    calm, loud = white['undisturbed'][0], white['M_J'][white['strengths'].index(10)][0]
    assert f'falls from {calm:.2f} to {loud:.2f} with white noise 10 dB' in text
    stages, small = media('bench-released-avss')['stages'], media('bench-scenes-tiny')['stages']
    seconds = {name: s['cpu_seconds'] for name, s in stages.items() if name != 'losses and matching'}
    assert f'takes {sum(seconds.values()):.1f} s of CPU time a frame' in text
    assert f"{seconds['backbone'] + seconds['region encoder']:.1f} s, is the two backbones" in text
    film, whole = (media(f'bench-{name}')['stages'] for name in ('film', 'whole'))
    assert f"makes {film['file to overlay']['rate']:.1f} frames a second" in text and f"{small['file to overlay']['rate']:.1f} in one" in text
    assert f"{whole['whole']['seconds']:.1f} s on the clock in two" in text
    at_70 = sum(seconds.values()) * media('bench-released-avss')['ceilings']['matrix product, float32']['rate'] / 70e9
    assert f'brought to that rate, this package takes {at_70:.1f} s' in text


def test_the_picture_is_what_the_model_gives():
    "The stored one has 256 colours, hence the slack; one mask in the place of another changes 0.6 % of the dots."
    with Image.open(ROOT/'nbs'/'images'/'whole.png') as f: stored = np.asarray(f.convert('RGB')).astype(int)
    drawn = np.asarray(runpy.run_path(str(ROOT/'.ci'/'whole.py'))['whole']())
    assert drawn.shape == stored.shape
    assert (np.abs(drawn - stored).max(-1) > 40).mean() < .001, 'run .ci/whole.py again'
