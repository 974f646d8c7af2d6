"""From a data set to images in one command: train a VAE and its AR model, then draw a sheet of every class."""

from spherear.console import INTERRUPTED, say
from spherear.evaluation.defaults import preset_guidance
from spherear.models.files import user_path, write_json
from spherear.sampling.pipeline import Pipeline
from spherear.sampling.settings import SamplingSettings
from spherear.sheets import columns_of, draw_sheet
from spherear.train import check_jobs, dry_run, states_of
from spherear.training.jobs import AllJob
from spherear.training.progress import watch

JOB_FILE, SHEET = "all.json", "samples.png"
ROWS = 4


def train_all(job: AllJob) -> int:
    """Train both models in `job.run`, resuming what is there, and draw `samples.png`; returns the exit status.

    Everything that can be refused is refused before the VAE is trained. `all.json` holds the job, as a file for
    `spherear train all --config`.
    """
    if job.dry_run:
        print(dry_run(job))
        return 0
    vae, ar = job.jobs()
    data = check_jobs(vae, ar)
    say(f"training on {data.describe()}")
    parts = (
        ("1/3 VAE: images to tokens and back", vae.recipe.steps, lambda: states_of(vae)[0]),
        ("2/3 AR model: the next token", ar.recipe.steps, lambda: states_of(ar)[0]),
    )
    for title, steps, states in parts:
        if not watch(states(), title, steps):
            print(f"stopped: {job.run} holds all it takes; the same command goes on")
            return INTERRUPTED
    write_json(job.run / JOB_FILE, _job_file(job))
    pipeline = Pipeline.from_pretrained(job.run, device=job.device)
    config = pipeline.ar.config
    columns = columns_of(config, ())
    balanced = SamplingSettings.named("balanced", guidance_scale=preset_guidance(config))
    name = str(user_path(job.run).resolve())
    draw_sheet(pipeline, name, columns, ROWS, balanced.fitting(config.head_kind), job.seed, job.run / SHEET)
    print(f"{job.run / SHEET}: {', '.join(map(config.name_of, columns))}")
    print(f"{job.run}: the models, for `spherear sample --run {job.run}` and `spherear evaluate {job.run}`")
    return 0


def _job_file(job: AllJob) -> dict[str, object]:
    values = {
        name: getattr(job, name)
        for name in ("data", "preset", "vae_steps", "ar_steps", "batch_size", "seed", "workers", "hold_out")
    }
    return {"kind": "all", **values, "vae": job.vae.to_dict(), "ar": job.ar.to_dict()}
