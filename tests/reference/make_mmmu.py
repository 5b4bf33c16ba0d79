"""A small MMMU in the layout of its data set: python make_mmmu.py OUT_FOLDER (needs pyarrow and Pillow)

Columns as published: options is a text that holds a Python list, images are {bytes, path}.
"""

import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "question", "options", "explanation")]
    + [(f"image_{i}", IMAGE) for i in range(1, 8)]
    + [(name, pa.string()) for name in ("img_type", "answer", "topic_difficulty", "question_type", "subfield")]
)


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": f"{colour}.png"}


def row(id, question, options, answer, colour):
    kind = "multiple-choice" if options else "open"
    images = {f"image_{i}": None for i in range(1, 8)} | {"image_1": png(colour)}
    texts = {"explanation": "", "img_type": "['Tables']", "topic_difficulty": "Easy", "subfield": "All"}
    return {"id": id, "question": question, "options": str(options), "answer": answer, "question_type": kind} | images | texts


SUBJECTS = {
    "Accounting": [
        row("validation_Accounting_1", "<image 1> What is it?", ["$6", "it's $7", 'a "9"'], "B", "red"),
        row("validation_Accounting_2", "How much?", [], "1,200", "green"),
    ],
    "Art_Theory": [
        row("validation_Art_Theory_1", "Who?", [], "['Monet', 'Claude Monet']", "blue"),
        row("validation_Art_Theory_2", "Which?", ["yes", "no"], "A", "white"),
        row("test_Art_Theory_3", "Which one?", ["yes", "no"], "?", "black"),
    ],
}

if __name__ == "__main__":
    for subject, rows in SUBJECTS.items():
        folder = Path(sys.argv[1]) / subject
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        pq.write_table(table, folder / "validation-00000-of-00001.parquet", compression="snappy")
