"""A race as one page that needs no network, and as pictures; with matplotlib and jinja2."""
