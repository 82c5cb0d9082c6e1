/// Arguments of the kernels of recurrent layers: one token at a time, states in and out.
#pragma once

#include <cstdint>

namespace sterna::cpu {

/// y[c] = bias[c] + the sum over j of inputs[j][c] * w[j][c], oldest input first.
struct ConvArgs {
  const float* const* inputs;  // [kernel], of which null is zeros
  int kernel;
  std::int64_t channels;
  const float* w;  // [kernel][w_stride]
  std::int64_t w_stride;
  const float* bias;  // null: none
  float* y;
};

/// s[r] = s[r] * exp(dt a) + b (dt x[r]); y[r] = s[r].c + d x[r], where s[r], b and c have n elements.
struct SsmArgs {
  const float* state_in;  // [rows][n]; null: zeros
  float* state_out;       // may be state_in
  int rows;
  int n;
  const float* x;  // [rows]
  const float* b;  // [n]
  const float* c;  // [n]
  float* y;        // [rows]
  bool per_row;    // each row has its own dt, a and d: [rows], [rows][n], [rows]; otherwise there is one of each
  const float* dt;
  const float* a;
  const float* d;
};

/// s = s exp(g); s = s + k (beta (v - k.s)); y = q.s, where s has a row for each element of k and q.
struct DeltaArgs {
  const float* state_in;  // [key_dim][value_dim]; null: zeros
  float* state_out;       // may be state_in
  int key_dim;
  int value_dim;
  const float* q;  // [key_dim]
  const float* k;  // [key_dim]
  const float* v;  // [value_dim]
  float g;
  float beta;
  float* y;  // [value_dim]
};

}  // namespace sterna::cpu
