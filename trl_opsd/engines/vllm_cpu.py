# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Weight sync of a colocated vLLM on its CPU backend, the one place where TRL's own does not work."""

from trl.generation.vllm_generation import VLLMGeneration


def sync_by_reload_on_cpu(generation: VLLMGeneration) -> None:
    """
    Synchronise weights with a colocated engine through vLLM's `reload_weights`, if it runs on the CPU.

    TRL 1.16 hands each parameter to `model.load_weights`. On the CPU backend, vLLM 0.31 packs the weights of linear
    layers for its kernels once they are loaded and leaves plain parameters in their place, so that a second load fails
    with "'Parameter' object has no attribute 'weight_loader'". `reload_weights` puts the loadable form back first and
    packs again afterwards. On any other platform TRL's sync works, and is left alone.

    Args:
        generation ([`~trl.generation.vllm_generation.VLLMGeneration`]): The trainer's, with its engine loaded.
    """
    if generation.mode != "colocate":
        return
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    runner = generation.llm.llm_engine.model_executor.driver_worker.model_runner

    def sync_weights() -> None:
        # Names, gathering and merged adapters are TRL's. It also ends the sleep mode here, which a CPU does not have.
        runner.reload_weights(weights_iterator=generation._iter_named_params())
        # A head tied to the embedding is in no checkpoint: the reload fills the weight that the two share, but leaves
        # the head's packed copy, which computes the logits, as it was
        for layer in runner.get_model().modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)
        generation.llm.reset_prefix_cache()

    generation.sync_weights = sync_weights
