# SPDX-License-Identifier: Apache-2.0
"""Learn increments of attributes, one after the other, without forgetting.

    python train_mclfir.py                                   the drawn data set, from nothing, in a few minutes
    python train_mclfir.py --recipe NAME --dataset DIR       a recipe of model_cards/ on a prepared data set
    python train_mclfir.py --task text-image …               captions and images instead of attributes
    accelerate launch train_mclfir.py …                      the same on several processes
"""

import os
import sys
from functools import partial
from pathlib import Path

from modeling_mclfir.continual import METHODS
from modeling_mclfir.training.arguments import parse_arguments
from modeling_mclfir.training.checkpoint import increment_folder, save_increment
from modeling_mclfir.training.launch import processes_asked_for, start_accelerator, start_all
from modeling_mclfir.training.loop import IncrementTrainer
from modeling_mclfir.training.run import open_run
from modeling_mclfir.training.tasks import TASKS


def main(arguments: list[str] | None = None) -> dict:
    """Parse, load; for each increment: train, evaluate, save. Returns the report."""
    model_args, data_args, args = parse_arguments(arguments)
    output_dir = Path(args.output_dir)
    accelerator = start_accelerator(args)

    task = TASKS[data_args.task]
    data = task.open_data(data_args, output_dir, args.seed, accelerator)
    run = open_run(model_args, data_args, args, data, accelerator, task.run)  # fresh, or where --resume finds it
    model, progress = run.model, run.progress

    method = METHODS[args.method](args)
    method.check_model(model.config)
    method.load_kept_state_dict(run.method_state)
    trainer = IncrementTrainer(accelerator, args, output_dir / "last", run.identity)
    scores = task.scores(run, method)
    scores.before_training()
    report = None

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

        # Evaluate: every increment seen so far, and what is known of the next one.
        scores.after_increment(increment_id)

        # Save: a complete checkpoint, the report, the pictures.
        if accelerator.is_main_process:
            previous = increment_folder(output_dir, increment_id - 1) if increment_id else None
            state = run.identity() | {"num_finished": increment_id + 1, "progress": progress.to_dict()}
            folder = increment_folder(output_dir, increment_id)
            save_increment(folder, model, run.saved_processor, state, method.kept_state_dict(), previous)
            report = task.build_report(run)
            if args.plots:
                task.draw_plots(report, scores.examples(increment_id), output_dir / "plots")
            task.write_report(report, output_dir)
        accelerator.wait_for_everyone()

    run.close()
    if report is None:
        report = task.build_report(run)
        if accelerator.is_main_process:  # resumed with nothing left to learn, perhaps stopped before it was written
            task.write_report(report, output_dir)
    return report


def tell(report: dict) -> None:
    """One line on what came out, and where the rest is."""
    if not report["average"] or int(os.environ.get("RANK", 0)):
        return
    average = report["average"]
    kinds = (("MAP", "mean_average_precision"), ("random order", "random_ranking"), ("triplets", "triplet_accuracy"),
             ("recall at 1, 5 and 10, both ways, mean", "mean_recall"))  # fmt: skip
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
