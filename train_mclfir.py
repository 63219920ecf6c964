# SPDX-License-Identifier: Apache-2.0
"""Learn increments of attributes, one after the other, without forgetting.

    python train_mclfir.py                                   the drawn data set, from nothing, in a few minutes
    python train_mclfir.py --recipe NAME --dataset DIR       a recipe of model_cards/ on a prepared data set
    accelerate launch train_mclfir.py …                      the same on several processes
"""

import os
import sys
from functools import partial
from pathlib import Path

from modeling_mclfir.continual import METHODS
from modeling_mclfir.evaluation import Evaluator, mean_score
from modeling_mclfir.training.arguments import parse_arguments
from modeling_mclfir.training.attention_examples import attention_examples
from modeling_mclfir.training.checkpoint import increment_folder, save_increment
from modeling_mclfir.training.examples import retrieval_examples
from modeling_mclfir.training.launch import processes_asked_for, start_accelerator, start_all
from modeling_mclfir.training.loop import IncrementTrainer
from modeling_mclfir.training.open_data import open_data
from modeling_mclfir.training.plots import draw_plots
from modeling_mclfir.training.report import write_report
from modeling_mclfir.training.run import open_run
from modeling_mclfir.training.run_report import build_report


def main(arguments: list[str] | None = None) -> dict:
    """Parse, load; for each increment: train, evaluate, save. Returns the report."""
    model_args, data_args, args = parse_arguments(arguments)
    output_dir = Path(args.output_dir)
    accelerator = start_accelerator(args)

    data = open_data(data_args, output_dir, args.seed, accelerator)
    run = open_run(model_args, data_args, args, data, accelerator)  # a fresh one, or where --resume finds it
    model, progress = run.model, run.progress

    method = METHODS[args.method](args)
    method.check_model(model.config)
    method.load_kept_state_dict(run.method_state)
    trainer = IncrementTrainer(accelerator, args, output_dir / "last", run.identity)
    evaluator = Evaluator(
        data.tables, data_args.evaluate_on, run.processor, run.cache, accelerator, args.eval_batch_size,
        data.triplets["evaluation"],
    )  # fmt: skip
    sides = evaluator.prepare(model)
    if progress.initial_trunk is None:
        run.score_trunk(evaluator, sides, data.increments)
    embeds, report = {}, None

    for increment_id in range(run.num_finished, len(data.increments)):
        increment = data.increments[increment_id]

        # Learn: new heads, a new adapter that starts from the last one; all else is frozen.
        model = run.begin_increment(increment_id, method)
        batches, bill = run.batches(increment_id, method)
        bill.add(run.start_heads(increment_id, method, batches))
        method.begin_increment(model, increment_id, run.num_values(increment_id, method))
        trainer.train(
            model, method, batches, increment_id, increment.name, progress, bill, data_args.num_workers,
            finish=partial(run.finish_spaces, increment_id, method, batches),
        )  # fmt: skip
        model.set_trainable(None)

        # Evaluate: every attribute seen so far, and what the pooled features know of the next increment.
        sides = evaluator.prepare(model)
        rows, row_of_scores = [], []
        for seen_id, seen in enumerate(data.increments[: increment_id + 1]):
            embeds[seen.name] = tuple(run.embed(evaluator, side, seen_id, method) for side in sides)
            rows.append(evaluator.score(sides, embeds[seen.name], seen))
            row_of_scores.append(mean_score(rows[-1]))
        run.score_unknown(evaluator, sides, embeds, row_of_scores, method)
        if increment_id + 1 < len(data.increments):
            row_of_scores.append(mean_score(run.pooled_rows(evaluator, sides, data.increments[increment_id + 1])))
        row_of_scores += [None] * (len(data.increments) - len(row_of_scores))
        progress.scores.append(row_of_scores)
        progress.history.append([row for group in rows for row in group])

        # Save: a complete checkpoint, the report, the pictures.
        if accelerator.is_main_process:
            previous = increment_folder(output_dir, increment_id - 1) if increment_id else None
            state = run.identity() | {"num_finished": increment_id + 1, "progress": progress.to_dict()}
            folder = increment_folder(output_dir, increment_id)
            save_increment(folder, model, run.processor, state, method.kept_state_dict(), previous)
            report = build_report(run)
            if args.plots:
                learned = data.increments[: increment_id + 1]
                examples = {
                    "retrievals": retrieval_examples(model, evaluator, sides, embeds, learned),
                    "attentions": [] if method.by_pooled_features
                    else attention_examples(model, evaluator, sides, embeds, learned),
                }
                draw_plots(report, examples, output_dir / "plots")
            write_report(report, output_dir)
        accelerator.wait_for_everyone()

    run.close()
    if report is None:
        report = build_report(run)
        if accelerator.is_main_process:  # resumed with nothing left to learn, perhaps stopped before it was written
            write_report(report, output_dir)
    return report


def tell(report: dict) -> None:
    """One line on what came out, and where the rest is."""
    if not report["average"] or int(os.environ.get("RANK", 0)):
        return
    average = report["average"]
    kinds = (("MAP", "mean_average_precision"), ("random order", "random_ranking"), ("triplets", "triplet_accuracy"))
    found = ", ".join(f"{name} {100 * average[key]:.2f} %" for name, key in kinds if key in average)
    sys.stderr.write(f"{found}: {Path(report['arguments']['output_dir']) / 'report.md'}\n")


def command() -> None:
    """Entry point: a user's mistake ends in one line, not in a traceback."""
    num_processes = processes_asked_for()
    if num_processes > 1:
        start_all(__file__, sys.argv[1:], num_processes)
    try:
        tell(main())
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    command()
