"The notebook that puts a table together, for each metric that a table may print."
import ast

import nbformat
import pytest

from au_study.study.manifests import project_root


def shown(study):
    "What the cells of `table.ipynb` that hold AUs show of a study."
    cells = [c for c in nbformat.read(project_root() / "nbs/reproduce/table.ipynb", as_version=4).cells if c.cell_type == "code"]
    space, frames = {}, []
    for cell in cells[:-1]:      # the last one writes
        if "plot_averages(" in cell.source: continue
        *body, last = ast.parse(cell.source).body
        exec(compile(ast.Module([*body, *([] if isinstance(last, ast.Expr) else [last])], []), "cell", "exec"), space)
        if "parameters" in cell.metadata.get("tags", []): space["study"] = study
        if cell.source.startswith("per_au("): frames.append(eval(compile(ast.Expression(last.value), "cell", "eval"), space))
    return frames


@pytest.mark.parametrize("study, digits", [("au_rcnn_table5", 1), ("re_net_table4_icc", 2), ("re_net_table4_mae", 2)])
def test_a_table_shows_the_decimals_of_its_metric(study, digits):
    _, printed = shown(study)
    values = printed.stack()
    assert len(values) and (values.round(digits) == values).all() and (values.round(digits - 1) != values).any()
