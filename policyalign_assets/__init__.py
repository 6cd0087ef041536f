"""Keeps deployed language models aligned with written safety policies."""

import os

from policyalign_assets.threads import wait_politely

# Here, because it must happen before PyTorch is loaded, in every process that uses this package.
wait_politely(os.environ)
