"""Writes a folder as launch/report.py reads it, with made-up but plausible numbers: fake_report_inputs.py FOLDER."""

import json
import math
import random
import sys
from pathlib import Path

STEPS, BATCH_TOKENS = 600, 16384


def evaluation(loss):
    return {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss / math.log(2) / 4.1, "tokens": 812345}


def write_run(folder, final_loss, seed, with_fgrams):
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    lines = []
    for step in range(1, STEPS + 1):
        loss = final_loss + (9.0 - final_loss) * math.exp(-step / 80)
        line = {"step": step, "tokens": step * BATCH_TOKENS, "loss": loss + draw.gauss(0, 0.06), "lr": 2e-3,
                "grad_norm": 0.4, "step_seconds": 0.35, "tokens_per_second": BATCH_TOKENS / 0.35,
                "main_peak_share": 0.6, "fgram_peak_share": 0.55 if with_fgrams else 0.0,
                "fgram_nodes_per_token": 0.5 if with_fgrams else 0.0,
                "fgram_nodes_computed_per_token": 0.53 if with_fgrams else 0.0, "data_wait_share": 0.001}
        if step % 100 == 0:
            line["validation_loss"] = loss + 0.03
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "config.yaml").write_text("model:\n  main:\n    width: 256  # <escaped> & shown\n", encoding="utf-8")


def main(folder):
    write_run(folder / "baseline", 4.21, 1, False)
    write_run(folder / "scone", 4.02, 2, True)
    share = {"2": 0.31, "3": 0.24, "4": 0.11, "5": 0.06}
    objects = {
        "baseline-eval": evaluation(4.2345), "scone-eval": evaluation(4.0567), "baked-eval": evaluation(4.0567 + 8e-8),
        "bake": {"bundle": "bundle", "checkpoint": "step-00000600", "step": STEPS, "rows": 200000, "width": 256,
                 "dtype": "fp32", "table_bytes": 4096 + 200000 * 1024, "seconds": 6.5, "rows_per_second": 30769.0},
        "timing": {"seconds": 812.4, "stages": {"setup": 140.0, "corpus": 30.2, "tokenize": 25.1, "fgrams": 22.0,
                                                "baseline": 240.5, "scone": 330.2, "bake": 6.5, "eval": 14.0,
                                                "generate": 1.1}},
        "fgrams": {"output": "fgrams.h5", "size": 200000, "fingerprint": "0123456789abcdef", "max_length": 5,
                   "min_count": 5, "corpus_tokens": 18234567,
                   "survivors_by_length": {"2": 310000, "3": 260000, "4": 120000, "5": 60000},
                   "chosen_by_length": {"2": 96000, "3": 68000, "4": 25000, "5": 11000}, "cutoff_count": 17,
                   "coverage": {"share": 0.72, "share_by_length": share, "fgram_tokens_per_position": 2.08,
                                "padded_fgram_tokens_per_position": 3.6},
                   "sharing": [{"batch_tokens": 8192, "batches": 4, "nodes_per_token": 0.74, "fgrams_per_token": 0.45},
                               {"batch_tokens": 65536, "batches": 4, "nodes_per_token": 0.48,
                                "fgrams_per_token": 0.3},
                               {"batch_tokens": 524288, "batches": 0, "nodes_per_token": None,
                                "fgrams_per_token": None}], "seconds": 21.5},
    }
    for name, content in objects.items():
        lines = "a line that precedes the object\n" if name == "fgrams" else ""
        (folder / f"{name}.json").write_text(lines + json.dumps(content) + "\n", encoding="utf-8")
    (folder / "sample.txt").write_text("The Python <module> is & was a mapping of names to objects, " * 6,
                                       encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
