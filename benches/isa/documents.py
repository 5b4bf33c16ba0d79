"""Tables in documents, between a line that says which command writes them and another one."""


def replace_table(path, start, end, lines):
    """Replaces what is between the lines `start` and `end` of a document."""
    before, rest = path.read_text().split(start + "\n")
    _, after = rest.split(end)
    table = "\n".join(lines)
    path.write_text(f"{before}{start}\n\n{table}\n\n{end}{after}")
