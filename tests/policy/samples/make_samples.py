"""Makes the Word and PDF samples of this folder: `python tests/policy/samples/make_samples.py`.

The Word files are made by pandoc from `*.source.md`; the hospital's gets a page header. The PDF is
written by hand: two pages with a running header, page numbers, bullets and a nested list.
"""

import re
import subprocess
import zipfile
from pathlib import Path

import pypandoc

HERE = Path(__file__).parent
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_HEADER = (
    f'<?xml version="1.0" encoding="UTF-8"?><w:hdr xmlns:w="{_WORD}"><w:p><w:r>'
    "<w:t>Hospital handbook - never copy</w:t></w:r></w:p></w:hdr>"
)
BANK = (
    (
        "Conduct of the banking assistant",
        "",
        "1 Payments",
        "",
        "The assistant must not:",
        "    \u2022  release a payment that no second employee has",
        "       approved",
        "    \u2022  split a deposit to stay below a reporting",
        "       threshold",
        "",
        "Staff may only quote a rate with the treasurer's approval.",
    ),
    (
        "2 Prohibited Conduct",
        "",
        "    \u2022  Money laundering",
        "    \u2022  Advice on:",
        "        -  hiding income from a tax office",
        "        -  misleading an auditor",
        "",
        "3 Service",
        "",
        "If a customer mentions a threat, call the security desk.",
    ),
)


def make_word(name: str) -> None:
    target = HERE / f"{name}.docx"
    source = HERE / f"{name}.source.md"
    command = [pypandoc.get_pandoc_path(), "-f", "markdown", "-t", "docx", "-o", target, source]
    subprocess.run(command, check=True)


def add_header(target: Path) -> None:
    """Gives a Word file a page header, which pandoc cannot write."""
    with zipfile.ZipFile(target) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    body = parts["word/document.xml"].decode()
    reference = f'<w:headerReference xmlns:r="{_OFFICE}" w:type="default" r:id="rIdHeader"/>'
    body = re.sub(r"<w:sectPr\s*/>", "<w:sectPr></w:sectPr>", body)
    parts["word/document.xml"] = re.sub(
        r"(<w:sectPr[^>]*>)", rf"\1{reference}", body, count=1
    ).encode()
    parts["word/header1.xml"] = _HEADER.encode()
    relation = f'<Relationship Id="rIdHeader" Type="{_OFFICE}/header" Target="header1.xml"/>'
    relations = parts["word/_rels/document.xml.rels"].decode()
    parts["word/_rels/document.xml.rels"] = relations.replace(
        "</Relationships>", f"{relation}</Relationships>"
    ).encode()
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.header+xml"
    types = parts["[Content_Types].xml"].decode()
    override = f'<Override PartName="/word/header1.xml" ContentType="{kind}"/>'
    parts["[Content_Types].xml"] = types.replace("</Types>", f"{override}</Types>").encode()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in parts.items():
            new.writestr(name, data)


def pdf_bytes(pages: tuple[tuple[str, ...], ...], header: str = "", footer: str = "") -> bytes:
    """A PDF of text lines in Courier; leading spaces of a line are its indentation."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    objects.append(
        "<< /Type /Font /Subtype /Type1 /BaseFont /Courier /Encoding /WinAnsiEncoding >>"
    )
    kids = []
    for number, lines in enumerate(pages, 1):
        shown = [(780, header)] if header else []
        shown += [(740 - 16 * at, line) for at, line in enumerate(lines)]
        shown += [(40, f"{footer} {number}")] if footer else []
        stream = "".join(
            f"BT /F1 11 Tf {60 + 6.6 * (len(t) - len(t.lstrip())):.1f} {y} Td "
            f"({_escaped(t.strip())}) Tj ET\n"
            for y, t in shown
            if t.strip()
        )
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {len(objects) + 2} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(stream.encode('cp1252'))} >>\nstream\n{stream}endstream")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode("cp1252")
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode()
    out += (
        f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n".encode()
    )
    return out


def _escaped(text: str) -> str:
    return re.sub(r"([\\()])", r"\\\1", text)


if __name__ == "__main__":
    for sample in ("hospital", "law-firm"):
        make_word(sample)
    add_header(HERE / "hospital.docx")
    (HERE / "bank.pdf").write_bytes(pdf_bytes(BANK, "Bank handbook, internal", "Page"))
