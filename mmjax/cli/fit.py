"""What the data and the model of a stage must agree on; nobody else sees both."""

from jax.sharding import Mesh

from mmjax.data.config import DataSetConfig
from mmjax.parallel import RULES, num_row_parts
from mmjax.training.config import StageConfig
from mmjax.training.structure import ConfigError, require


def check_fit(name: str, config: StageConfig) -> None:
    """Checks vocabulary, row length, image size, template and visual tokens of every data set.

    Raises:
        ConfigError: naming both fields and what to change.
    """
    where = f"{name}." if name else ""
    part = "lm" if hasattr(config.model, "lm") else "text"
    reader = getattr(config.model, part)            # the tower that reads tokens
    try:
        vocab_size = config.data.make_tokenizer().vocab_size
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}data.tokenizer: {error}") from error
    require(vocab_size <= reader.vocab_size,
            f"{where}model.{part}.vocab_size={reader.vocab_size} is less than the {vocab_size} tokens of the tokenizer")
    for set_name, data in config.data.sets.items():
        path = f"{where}data.sets.{set_name}"
        require(data.template in (config.system, "language"),
                f"{path}.template={data.template!r} does not fit system {config.system!r}; "
                f"use {config.system!r}, or 'language' for text alone")
        longest = data.max_tokens or data.seq_len
        require(longest <= reader.max_positions,
                f"{path}: documents of up to {longest} tokens are longer than "
                f"{where}model.{part}.max_positions={reader.max_positions}; set max_tokens")
        if getattr(config.model, "text_padding", False):
            require(data.seq_len == reader.max_positions,
                    f"{path}.seq_len={data.seq_len} must equal {where}model.{part}.max_positions="
                    f"{reader.max_positions}: with text_padding the tower reads padding as text")
        if data.images_per_row:
            _check_images(path, where, data, config.model)


def check_rows(name: str, config: StageConfig, mesh: Mesh) -> None:
    """Checks that the rows of every data set divide over the devices; ConfigError names sizes that would."""
    devices = num_row_parts(mesh)
    parts = devices * config.accumulate
    for set_name, data in config.data.sets.items():
        below = data.batch_size // parts * parts
        require(below == data.batch_size,
                f"{name}{'.' if name else ''}data.sets.{set_name}.batch_size={data.batch_size} must be a multiple of "
                f"the {devices} devices on the mesh axes {' x '.join(RULES['batch'])}"
                f"{f' times accumulate={config.accumulate}' if config.accumulate > 1 else ''}; "
                f"try {f'{below} or ' if below else ''}{below + parts}")


def _check_images(path: str, where: str, data: DataSetConfig, model) -> None:
    vision = getattr(model, "vision", None)
    require(vision is not None,
            f"{path}.images_per_row={data.images_per_row}, but the model has no vision tower; use 0")
    require(data.image.size == vision.image_size,
            f"{path}.image.size={data.image.size} must equal {where}model.vision.image_size={vision.image_size}")
    template = data.make_template()
    if template.num_slots:
        slots = model.connector.num_latents
        require(template.num_slots == slots, f"{path}.template_options.num_slots={template.num_slots} must equal "
                                             f"{where}model.connector.num_latents={slots}")
    frames = getattr(getattr(model, "resampler", None), "num_frames", None)
    require(frames is None or data.frames <= frames,
            f"{path}.frames={data.frames} exceeds {where}model.resampler.num_frames={frames}")
