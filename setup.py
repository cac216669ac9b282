"Package metadata comes from settings.ini, and from nowhere else."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=['='])
cfg.read(Path(__file__).parent / 'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
lines = lambda key: [o.strip() for o in cfg.get(key, '').splitlines() if o.strip()]

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], author=cfg['author'],
    keywords=cfg['keywords'], license=cfg['license'], python_requires='>=' + cfg['min_python'],
    long_description=(Path(__file__).parent / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    packages=find_packages(include=['silkworm_app', 'silkworm_app.*']),
    package_data={'silkworm_app': [f'**/*.{o}' for o in ('yaml', 'html', 'css', 'js', 'svg')]},
    install_requires=lines('requirements'), extras_require={k: lines(f'{k}_requirements') for k in ('lite', 'dev', 'docs', 'lab')},
    entry_points={'console_scripts': lines('console_scripts')},
)
