"""The worked example and the explorer as pages that need no network; with jinja2 and latex2mathml."""
