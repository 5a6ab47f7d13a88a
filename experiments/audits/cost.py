"""What the default audit costs on a ResNet-18: 512 forgotten examples against 10,000 held-out ones, by part.

    python -m experiments audit-cost --model runs/fm-r18

Writes results/audit/cost.json. The model is audited against itself: the cost does not depend on what was forgotten.
"""

import argparse
import json
import time

from experiments import places
from experiments.commit import origin
from experiments.markdown import sourced
from expunge.auditing import audit
from expunge.data import draw_ids, load_data
from expunge.markdown import markdown
from expunge.models import load_model

TARGET = places.RESULTS / "audit" / "cost.json"
NUM_FORGET = 512
PARTS = {
    "forward": "forward passes of the two models",
    "references": "reference models",
    "comparing the models": "comparison of the two models",
    "relearning": "relearning of the last layer, 40 sets",
    "statistics": "attacks, ROC and histograms",
}


def main() -> None:
    """Times one audit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a directory of `expunge train --data fashion-mnist`")
    made = origin()
    model, header = load_model(parser.parse_args().model)
    train, test = load_data("fashion-mnist:train"), load_data("fashion-mnist:test")
    forget = train.select(draw_ids(train, NUM_FORGET, 0))
    started = time.perf_counter()
    report = audit(model, model, forget, test)
    total = time.perf_counter() - started
    record = {
        "architecture": header.spec.architecture,
        "num_forget": report.num_forget,
        "num_test": report.num_test,
        "seconds": dict(report.seconds),
        "total": total,
        **made,
    }
    TARGET.write_text(json.dumps(record, indent=2) + "\n")
    print(cost_table())


def cost_table() -> str:
    """Seconds and shares of the whole."""
    record = json.loads(places.read(TARGET))
    total, seconds = record["total"], record["seconds"]
    rows = [
        (what, f"{seconds[part]:.1f}", f"{100 * seconds[part] / total:.0f}%")
        for part, what in PARTS.items()
        if part in seconds
    ]
    rest = total - sum(seconds.values())
    rows += [("reading and hashing the images", f"{rest:.1f}", f"{100 * rest / total:.0f}%")]
    rows += [("the audit (aim: under 300)", f"{total:.1f}", "100%")]
    of = f"{record['architecture']}, {record['num_forget']} forgotten, {record['num_test']:,} held out"
    command = "`python -m experiments audit-cost --model runs/fm-r18`"
    return sourced(markdown(["part", "seconds", "share"], rows), record, of, command)
