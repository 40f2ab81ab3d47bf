//! Log output through `env_logger`, with levels changeable per module at run time.
