"""Makes draft policies from documents: Markdown, text, HTML, Word and PDF."""

from policyalign_assets.policy.importing.documents import Document, read_document
from policyalign_assets.policy.importing.draft import Imported, import_document
from policyalign_assets.policy.importing.examine import examine_document

__all__ = ["Document", "Imported", "examine_document", "import_document", "read_document"]
