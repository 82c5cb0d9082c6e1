/// The launchers of all kernels, by the argument structs of arguments.h: each makes the grid for the rows of a run.
#pragma once

#include "cuda/device_table.h"

namespace sterna::cuda {

Status launch_embed(const void* arguments, const Launch& launch);
Status launch_norm(const void* arguments, const Launch& launch);
Status launch_layer_norm(const void* arguments, const Launch& launch);
Status launch_binary(const void* arguments, const Launch& launch);
Status launch_lora(const void* arguments, const Launch& launch);
Status launch_scale(const void* arguments, const Launch& launch);
Status launch_clamp(const void* arguments, const Launch& launch);
Status launch_activation(const void* arguments, const Launch& launch);
Status launch_glu(const void* arguments, const Launch& launch);
Status launch_copy(const void* arguments, const Launch& launch);
Status launch_take_rows(const void* arguments, const Launch& launch);
Status launch_receive(const void* arguments, const Launch& launch);
Status launch_pool(const void* arguments, const Launch& launch);
Status launch_rope_table(const void* arguments, const Launch& launch);
Status launch_rope(const void* arguments, const Launch& launch);
Status launch_store_kv(const void* arguments, const Launch& launch);
Status launch_relative_bias(const void* arguments, const Launch& launch);
Status launch_attend(const void* arguments, const Launch& launch);
Status launch_prepare(const void* arguments, const Launch& launch);
Status launch_matmul(const void* arguments, const Launch& launch);
Status launch_route(const void* arguments, const Launch& launch);
Status launch_sort_pairs(const void* arguments, const Launch& launch);
Status launch_combine(const void* arguments, const Launch& launch);
Status launch_short_conv(const void* arguments, const Launch& launch);
Status launch_ssm_scan(const void* arguments, const Launch& launch);
Status launch_delta_rule(const void* arguments, const Launch& launch);
Status launch_largest(const void* arguments, const Launch& launch);
Status launch_repack(const void* arguments, const Launch& launch);

/// In the order of Kernel.
constexpr Launcher kLaunchers[kNumKernels] = {
    launch_embed,    launch_norm,       launch_layer_norm, launch_binary,     launch_lora,          launch_scale,
    launch_clamp,    launch_activation, launch_glu,        launch_copy,       launch_take_rows,     launch_receive,
    launch_pool,     launch_rope_table, launch_rope,       launch_store_kv,   launch_relative_bias, launch_attend,
    launch_prepare,  launch_matmul,     launch_route,      launch_sort_pairs, launch_combine,       launch_short_conv,
    launch_ssm_scan, launch_delta_rule, launch_largest,    launch_repack,
};

}  // namespace sterna::cuda
