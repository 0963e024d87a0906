// Checks the kernel on this machine's GPU against float64 on the host, then times it.
//
//   nvcc -O3 -std=c++17 -arch=native kernel.cu gpu_check.cu -o gpu_check && ./gpu_check > gpu_check.json
//
// Progress and mismatches go to standard error, one JSON object to standard output. Exit status: 0 where everything
// agreed, 1 where something did not, 3 where CUDA refused.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "aot.cu"
#include "kernel.cuh"
#include "refusals.h"

using namespace eecompile;

namespace {

#define CHECK(call)                                                                             \
  do {                                                                                          \
    const cudaError_t status = (call);                                                          \
    if (status != cudaSuccess) {                                                                \
      std::fprintf(stderr, "line %d: %s: %s\n", __LINE__, #call, cudaGetErrorString(status));   \
      std::exit(3);                                                                             \
    }                                                                                           \
  } while (0)

constexpr int kDistinct = 20;  // rows of different content; a batch repeats them
constexpr int kShown = 20;     // mismatches that are printed
constexpr double kProbabilityError = 4e-6, kEntropyError = 2e-5;
const char* const kTypeNames[] = {"fp32", "fp16", "bf16"};
const LogitType kTypes[] = {LogitType::kFloat32, LogitType::kFloat16, LogitType::kBFloat16};

int size_of(LogitType type) { return type == LogitType::kFloat32 ? 4 : 2; }

long checked = 0, mismatches = 0;
double worst_probability = 0, worst_entropy = 0;

void expect(bool good, const std::string& what) {
  ++checked;
  if (good) return;
  if (mismatches++ < kShown) std::fprintf(stderr, "MISMATCH %s\n", what.c_str());
}

template <typename T>
struct Device {
  T* at = nullptr;
  explicit Device(std::size_t count) { CHECK(cudaMalloc(&at, std::max<std::size_t>(count, 1) * sizeof(T))); }
  Device(const Device&) = delete;
  ~Device() { cudaFree(at); }
};

// -- logits and what float64 says of them -----------------------------------------------------------------------------

struct Random {
  std::uint64_t state;
  double uniform() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return double((state >> 33) + 1) / 2147483649.0;
  }
  double normal() { return std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307179586 * uniform()); }
};

float rounded(float x, LogitType type) {
  if (type == LogitType::kFloat16) return __half2float(__float2half(x));
  return type == LogitType::kBFloat16 ? __bfloat162float(__float2bfloat16(x)) : x;
}

void store(float x, LogitType type, void* to) {
  const __half half = __float2half(x);
  const __nv_bfloat16 brain = __float2bfloat16(x);
  const void* from = type == LogitType::kFloat32 ? static_cast<const void*>(&x) : &brain;
  std::memcpy(to, type == LogitType::kFloat16 ? &half : from, size_of(type));
}

std::vector<float> distinct_row(int kind, int vocab, LogitType type) {
  Random random{std::uint64_t(kind) * 1000003u + unsigned(vocab)};
  const float infinity = INFINITY, most = type == LogitType::kFloat16 ? 65504.0f : 3e38f;
  std::vector<float> row(vocab);
  const double spread[] = {1, 3, 8, 0.01};
  for (float& x : row) x = float(random.normal() * spread[kind % 4]);
  float& one = row[std::min(vocab - 1, int(random.uniform() * vocab))];
  if (kind == 4) for (float& x : row) x = std::floor(x);  // ties
  if (kind == 5) std::fill(row.begin(), row.end(), 2.5f);
  if (kind == 6) one = NAN;
  if (kind == 7) one = infinity;
  if (kind == 8) one = -infinity;
  if (kind == 9) std::fill(row.begin(), row.end(), -infinity);
  if (kind == 10) one = 30;  // sure of itself
  if (kind == 11) one = most;
  if (kind == 12) row[0] = -most, row[vocab - 1] = most;  // their difference overflows where the type allows it
  if (kind == 13) row[0] = row[vocab - 1] = 40;           // tie of first and last
  if (kind == 14) row[vocab - 1] = 25;
  if (kind == 15) std::fill(row.begin(), row.end(), NAN);
  if (kind == 16) std::fill(row.begin(), row.end(), -infinity), one = 1;
  if (kind == 17) for (float& x : row) x *= 1e-41f;
  if (kind == 18) std::sort(row.begin(), row.end());
  for (float& x : row) x = rounded(x, type);
  return row;
}

struct Expected {
  std::int64_t token = 0;
  double max_prob = NAN, margin = NAN, entropy = NAN;
};

// By the rules that reduction.h states.
Expected expected_of(const std::vector<float>& row) {
  Expected result;
  float max = -INFINITY, low = INFINITY;
  bool nan = false;
  for (std::size_t i = 0; i < row.size(); ++i) {
    nan = nan || std::isnan(row[i]);
    low = std::min(low, row[i]);
    if (row[i] > max) max = row[i], result.token = std::int64_t(i);
  }
  if (nan || !std::isfinite(max)) return result;
  double sum = 0, moment = 0, second = 0;
  for (std::size_t i = 0; i < row.size(); ++i) {
    const double d = double(row[i]) - max, weight = std::exp(d);
    sum += weight;
    moment += weight > 0 ? weight * d : 0;
    if (std::int64_t(i) != result.token) second = std::max(second, weight);
  }
  result.max_prob = 1 / sum;
  result.margin = (1 - second) / sum;
  const float span = low - max;
  if (std::isfinite(span)) result.entropy = std::log(sum) - moment / sum;
  return result;
}

// -- launches ---------------------------------------------------------------------------------------------------------

struct Answers {
  std::vector<std::int64_t> token;
  std::vector<float> max_prob, margin, entropy;
  std::vector<std::int32_t> flag;
};

struct Outputs {
  int rows;
  Device<std::int64_t> token;
  Device<float> max_prob, margin, entropy;
  Device<std::int32_t> flag;
  explicit Outputs(int n) : rows(n), token(n), max_prob(n), margin(n), entropy(n), flag(n) {}
  Decisions pointers() const { return {token.at, max_prob.at, margin.at, entropy.at, flag.at}; }

  template <typename T>
  std::vector<T> fetched(const Device<T>& from) const {
    std::vector<T> values(rows);
    CHECK(cudaMemcpy(values.data(), from.at, rows * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }
  Answers fetch() const { return {fetched(token), fetched(max_prob), fetched(margin), fetched(entropy), fetched(flag)}; }
  void poison() const {
    CHECK(cudaMemset(token.at, 0xee, rows * sizeof(std::int64_t)));
    for (float* at : {max_prob.at, margin.at, entropy.at}) CHECK(cudaMemset(at, 0xee, rows * sizeof(float)));
    CHECK(cudaMemset(flag.at, 0xee, rows * sizeof(std::int32_t)));
  }
};

bool same(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }

bool same_bits(const Answers& a, int i, const Answers& b, int j) {
  return a.token[i] == b.token[j] && same(a.max_prob[i], b.max_prob[j]) && same(a.margin[i], b.margin[j]) &&
         same(a.entropy[i], b.entropy[j]);
}

bool close(float got, double wanted, double error, double* worst) {
  if (std::isnan(wanted) || std::isnan(got)) return std::isnan(wanted) && std::isnan(got);
  *worst = std::max(*worst, std::abs(got - wanted));
  return std::abs(got - wanted) <= error;
}

void compare(const Answers& got, int row, const Expected& want, const float* bounds, const std::string& where) {
  char text[300];
  std::snprintf(text, sizeof text, "%s row %d: token %lld for %lld, max_prob %.9g for %.9g, margin %.9g for %.9g, "
                "entropy %.9g for %.9g, flag %d", where.c_str(), row, (long long)got.token[row], (long long)want.token,
                got.max_prob[row], want.max_prob, got.margin[row], want.margin, got.entropy[row], want.entropy,
                got.flag[row]);
  const bool opens = got.max_prob[row] > bounds[0] && got.margin[row] > bounds[1] && got.entropy[row] < bounds[2];
  bool good = got.token[row] == want.token && got.flag[row] == (opens ? 1 : 0);
  good = close(got.max_prob[row], want.max_prob, kProbabilityError, &worst_probability) && good;
  good = close(got.margin[row], want.margin, kProbabilityError, &worst_probability) && good;
  good = close(got.entropy[row], want.entropy, kEntropyError, &worst_entropy) && good;
  expect(good, text);
}

// Bounds that a good part of the rows passes.
std::vector<float> bounds_for(int rows, int vocab) {
  Random random{unsigned(rows * 31 + vocab)};
  std::vector<float> bounds;
  for (int i = 0; i < rows; ++i) {
    const bool strict = i % 3 == 0;
    bounds.push_back(strict ? float(random.uniform()) : -1);
    bounds.push_back(i % 5 == 1 ? float(random.uniform()) : -1);
    bounds.push_back(i % 4 == 2 ? float(random.uniform() * std::log(vocab + 1.0)) : INFINITY);
  }
  return bounds;
}

// -- correctness ------------------------------------------------------------------------------------------------------

struct Layout {
  int offset, padding;  // elements before the first row, and after each
};

// One vocabulary and type: every batch size and layout, against float64 and bit for bit against one another.
void check_vocab(LogitType type, int vocab, cudaStream_t stream) {
  const int bytes = size_of(type);
  std::vector<Expected> expected;
  std::vector<char> host(std::size_t(kDistinct) * vocab * bytes);
  for (int kind = 0; kind < kDistinct; ++kind) {
    const std::vector<float> row = distinct_row(kind, vocab, type);
    expected.push_back(expected_of(row));
    for (int i = 0; i < vocab; ++i) store(row[i], type, &host[(std::size_t(kind) * vocab + i) * bytes]);
  }
  Device<char> distinct(host.size());
  CHECK(cudaMemcpy(distinct.at, host.data(), host.size(), cudaMemcpyHostToDevice));
  Answers first;
  for (int rows : {33, 1, 2, 8, 256}) {
    for (Layout layout : {Layout{0, 0}, Layout{1, 3}, Layout{0, (16 - vocab % 16) % 16 + 16}}) {
      const std::size_t stride = std::size_t(vocab) + layout.padding, size = (layout.offset + stride * rows) * bytes;
      Device<char> logits(size);
      CHECK(cudaMemset(logits.at, 0xff, size));  // NaN in each type: whoever reads beyond a row shows it
      for (int r = 0; r < rows; ++r) {
        CHECK(cudaMemcpyAsync(logits.at + (layout.offset + r * stride) * bytes,
                              distinct.at + std::size_t(r % kDistinct) * vocab * bytes, std::size_t(vocab) * bytes,
                              cudaMemcpyDeviceToDevice, stream));
      }
      const std::vector<float> bounds = bounds_for(rows, vocab);
      Device<float> device_bounds(bounds.size());
      CHECK(cudaMemcpy(device_bounds.at, bounds.data(), bounds.size() * sizeof(float), cudaMemcpyHostToDevice));
      Device<char> workspace(workspace_bytes(rows, vocab));
      CHECK(cudaMemset(workspace.at, 0xff, workspace_bytes(rows, vocab)));
      CHECK(cudaDeviceSynchronize());
      CHECK(prepare(workspace.at, rows, stream));
      const Outputs out(rows);
      const std::string where = std::string(kTypeNames[int(type)]) + " rows " + std::to_string(rows) + " vocab " +
                                std::to_string(vocab) + " offset " + std::to_string(layout.offset) + " stride " +
                                std::to_string(stride);
      const Logits task{logits.at + std::size_t(layout.offset) * bytes, type, rows, vocab, std::int64_t(stride)};
      for (int repeat = 0; repeat < 4; ++repeat) {
        out.poison();
        CHECK(cudaDeviceSynchronize());
        CHECK(launch(task, device_bounds.at, out.pointers(), workspace.at, stream));
        CHECK(cudaStreamSynchronize(stream));
        const Answers got = out.fetch();
        if (first.token.empty()) first = got;
        for (int r = 0; r < rows; ++r) {
          if (repeat == 0) compare(got, r, expected[r % kDistinct], &bounds[r * 3], where);
          expect(same_bits(got, r, first, r % kDistinct), where + " row " + std::to_string(r) + ": other bits");
        }
      }
    }
  }
}

// The launch that engines carry (aot.cu), as TensorRT makes it, gives the same bits.
void check_carried(LogitType type, int vocab, cudaStream_t stream) {
  const int bytes = size_of(type), tiles = vocab / kernels::kTile + (vocab % kernels::kTile != 0);
  std::vector<char> host(std::size_t(kDistinct) * vocab * bytes);
  for (int kind = 0; kind < kDistinct; ++kind) {
    const std::vector<float> row = distinct_row(kind, vocab, type);
    for (int i = 0; i < vocab; ++i) store(row[i], type, &host[(std::size_t(kind) * vocab + i) * bytes]);
  }
  const std::vector<float> bounds = bounds_for(kDistinct, vocab);
  Device<char> logits(host.size()), workspace(workspace_bytes(kDistinct, vocab));
  Device<float> device_bounds(bounds.size());
  CHECK(cudaMemcpy(logits.at, host.data(), host.size(), cudaMemcpyHostToDevice));
  CHECK(cudaMemcpy(device_bounds.at, bounds.data(), bounds.size() * sizeof(float), cudaMemcpyHostToDevice));
  const Outputs ours(kDistinct), carried(kDistinct);
  carried.poison();
  CHECK(cudaDeviceSynchronize());
  CHECK(prepare(workspace.at, kDistinct, stream));
  CHECK(launch({logits.at, type, kDistinct, vocab, vocab}, device_bounds.at, ours.pointers(), workspace.at, stream));
  const auto start = [&](auto kernel, auto* at) {
    const dim3 block(kernels::kThreads, kernels::kTilesAtOnce);
    kernel<<<kDistinct, block, tiles * sizeof(Reduction), stream>>>(at, device_bounds.at, vocab, carried.token.at,
                                                                    carried.max_prob.at, carried.margin.at,
                                                                    carried.entropy.at, carried.flag.at);
    CHECK(cudaGetLastError());
  };
  if (type == LogitType::kFloat32) start(exit_decision_fp32, reinterpret_cast<const float*>(logits.at));
  if (type == LogitType::kFloat16) start(exit_decision_fp16, reinterpret_cast<const __half*>(logits.at));
  if (type == LogitType::kBFloat16) start(exit_decision_bf16, reinterpret_cast<const __nv_bfloat16*>(logits.at));
  CHECK(cudaStreamSynchronize(stream));
  const Answers wanted = ours.fetch(), got = carried.fetch();
  for (int r = 0; r < kDistinct; ++r) {
    expect(same_bits(got, r, wanted, r) && got.flag[r] == wanted.flag[r],
           std::string("carried ") + kTypeNames[int(type)] + " vocab " + std::to_string(vocab) + " row " +
               std::to_string(r) + ": other bits");
  }
}

// A row does not pass a bound that is equal to its own value, and passes the next bolder one.
void check_strictness(cudaStream_t stream) {
  constexpr int kRows = 64, kVocab = 5000;
  std::vector<float> host(std::size_t(kRows) * kVocab);
  Random random{1};
  for (float& x : host) x = float(random.normal() * 4);
  Device<float> logits(host.size()), bounds(kRows * 3);
  Device<char> workspace(workspace_bytes(kRows, kVocab));
  const Outputs out(kRows);
  CHECK(cudaMemcpy(logits.at, host.data(), host.size() * sizeof(float), cudaMemcpyHostToDevice));
  CHECK(prepare(workspace.at, kRows, stream));
  const auto decide = [&](const std::vector<float>& with) {
    CHECK(cudaMemcpy(bounds.at, with.data(), with.size() * sizeof(float), cudaMemcpyHostToDevice));
    CHECK(launch({logits.at, LogitType::kFloat32, kRows, kVocab, kVocab}, bounds.at, out.pointers(), workspace.at,
                 stream));
    CHECK(cudaStreamSynchronize(stream));
    return out.fetch();
  };
  std::vector<float> open;
  for (int r = 0; r < kRows; ++r) open.insert(open.end(), {-1.0f, -1.0f, INFINITY});
  const Answers own = decide(open);
  const std::vector<float>* values[] = {&own.max_prob, &own.margin, &own.entropy};
  for (int criterion = 0; criterion < 3; ++criterion) {
    std::vector<float> equal = open, bolder = open;
    for (int r = 0; r < kRows; ++r) {
      const float value = (*values[criterion])[r];
      equal[r * 3 + criterion] = value;
      bolder[r * 3 + criterion] = std::nextafter(value, criterion < 2 ? -INFINITY : INFINITY);
    }
    const Answers closed = decide(equal), opened = decide(bolder);
    for (int r = 0; r < kRows; ++r) {
      expect(!closed.flag[r] && opened.flag[r], "strictness: criterion " + std::to_string(criterion) + " row " +
             std::to_string(r));
    }
  }
}

void check_refusals(cudaStream_t stream) {
  for (const Logits& bad : refusals()) {
    expect(launch(bad, nullptr, {}, nullptr, stream) == cudaErrorInvalidValue, "a task that has to be refused");
  }
}

#if EECOMPILE_CONDITIONAL_GRAPHS
__global__ void mark(int* count) { ++*count; }

// A graph of the decision and an IF node behind it: its body counts how often it ran.
void check_condition(int rows, int vocab, int closed, bool inverted, cudaStream_t stream) {
  std::vector<float> host(std::size_t(rows) * vocab, 0.0f), bounds;
  for (int r = 0; r < rows; ++r) host[std::size_t(r) * vocab + 3] = 50;
  for (int r = 0; r < rows; ++r) bounds.insert(bounds.end(), {r == closed ? 2.0f : 0.5f, -1.0f, INFINITY});
  Device<float> logits(host.size()), device_bounds(bounds.size());
  Device<char> workspace(workspace_bytes(rows, vocab));
  Device<int> count(1);
  const Outputs out(rows);
  CHECK(cudaMemcpy(logits.at, host.data(), host.size() * sizeof(float), cudaMemcpyHostToDevice));
  CHECK(cudaMemcpy(device_bounds.at, bounds.data(), bounds.size() * sizeof(float), cudaMemcpyHostToDevice));
  CHECK(cudaMemset(count.at, 0, sizeof(int)));
  CHECK(prepare(workspace.at, rows, stream));
  CHECK(cudaDeviceSynchronize());

  cudaGraph_t graph;
  CHECK(cudaGraphCreate(&graph, 0));
  Condition condition{{}, inverted};
  CHECK(cudaGraphConditionalHandleCreate(&condition.handle, graph, 0, cudaGraphCondAssignDefault));
  CHECK(cudaStreamBeginCaptureToGraph(stream, graph, nullptr, nullptr, 0, cudaStreamCaptureModeThreadLocal));
  const Logits task{logits.at, LogitType::kFloat32, rows, vocab, vocab};
  CHECK(launch(task, device_bounds.at, out.pointers(), workspace.at, stream, &condition));
  CHECK(cudaStreamEndCapture(stream, &graph));
  cudaGraphNode_t decision, node;
  std::size_t found = 1;
  CHECK(cudaGraphGetNodes(graph, &decision, &found));
  cudaGraphNodeParams params = {};
  params.type = cudaGraphNodeTypeConditional;
  params.conditional.handle = condition.handle;
  params.conditional.type = cudaGraphCondTypeIf;
  params.conditional.size = 1;
#if CUDART_VERSION >= 13000
  CHECK(cudaGraphAddNode(&node, graph, &decision, nullptr, 1, &params));
#else
  CHECK(cudaGraphAddNode(&node, graph, &decision, 1, &params));
#endif
  cudaGraph_t body = params.conditional.phGraph_out[0];
  CHECK(cudaStreamBeginCaptureToGraph(stream, body, nullptr, nullptr, 0, cudaStreamCaptureModeThreadLocal));
  mark<<<1, 1, 0, stream>>>(count.at);
  CHECK(cudaStreamEndCapture(stream, &body));
  cudaGraphExec_t exec;
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  constexpr int kRuns = 3;
  for (int i = 0; i < kRuns; ++i) CHECK(cudaGraphLaunch(exec, stream));
  CHECK(cudaStreamSynchronize(stream));
  int ran = 0;
  CHECK(cudaMemcpy(&ran, count.at, sizeof ran, cudaMemcpyDeviceToHost));
  const bool opens = closed < 0;
  expect(ran == (opens != inverted ? kRuns : 0), "condition: rows " + std::to_string(rows) + " vocab " +
         std::to_string(vocab) + " closed " + std::to_string(closed) + " inverted " + std::to_string(inverted) +
         ": the body ran " + std::to_string(ran) + " times");
  CHECK(cudaGraphExecDestroy(exec));
  CHECK(cudaGraphDestroy(graph));
}

bool check_conditions(cudaStream_t stream) {
  int driver = 0;
  CHECK(cudaDriverGetVersion(&driver));
  if (driver < 12040) return false;
  for (int rows : {1, 33}) {
    for (int vocab : {1000, 49152}) {
      for (int closed : {-1, 0, rows - 1}) {
        for (bool inverted : {false, true}) check_condition(rows, vocab, closed, inverted, stream);
      }
    }
  }
  return true;
}
#else
bool check_conditions(cudaStream_t) { return false; }
#endif

// -- timing -----------------------------------------------------------------------------------------------------------

constexpr int kReadLoads = 4;

__global__ void empty() {}

__global__ void fill(std::uint32_t* at, std::size_t count, LogitType type) {
  const std::size_t i = blockIdx.x * std::size_t(blockDim.x) + threadIdx.x;
  if (i >= count) return;
  std::uint32_t bits = std::uint32_t(i) * 2654435761u;
  bits ^= bits >> 15, bits *= 2246822519u, bits ^= bits >> 13;
  const float a = float(bits & 0xffff) / 4096 - 8, b = float(bits >> 16) / 4096 - 8;
  if (type == LogitType::kFloat32) at[i] = __float_as_uint(a + b / 65536);
  if (type == LogitType::kFloat16) reinterpret_cast<__half2*>(at)[i] = __floats2half2_rn(a, b);
  if (type == LogitType::kBFloat16) reinterpret_cast<__nv_bfloat162*>(at)[i] = __floats2bfloat162_rn(a, b);
}

// The ceiling: the same bytes read in 16-byte loads, and nothing done with them.
__global__ void read_all(const uint4* at, std::size_t count, unsigned* out) {
  const std::size_t first = blockIdx.x * std::size_t(blockDim.x) * kReadLoads + threadIdx.x;
  uint4 values[kReadLoads] = {};
  for (int i = 0; i < kReadLoads; ++i) {
    if (first + i * blockDim.x < count) values[i] = __ldg(at + first + i * blockDim.x);
  }
  unsigned sum = 0;
  for (int i = 0; i < kReadLoads; ++i) sum += values[i].x + values[i].y + values[i].z + values[i].w;
  if (sum == 0x9e3779b9u) *out = sum;
}

// Median microseconds of one of kBatch launches in a graph: `enqueue(i, stream)` is the i-th of them.
double microseconds(const std::function<void(int, cudaStream_t)>& enqueue, cudaStream_t stream) {
  constexpr int kBatch = 20, kWarm = 5, kRuns = 60;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kBatch; ++i) enqueue(i, stream);
  cudaGraph_t graph;
  CHECK(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t exec;
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<double> times;
  for (int run = 0; run < kWarm + kRuns; ++run) {
    CHECK(cudaEventRecord(begin, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    float milliseconds = 0;
    CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    if (run >= kWarm) times.push_back(milliseconds * 1000.0 / kBatch);
  }
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  CHECK(cudaGraphExecDestroy(exec));
  CHECK(cudaGraphDestroy(graph));
  std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
  return times[kRuns / 2];
}

struct Timing {
  const Device<char>& pool;
  std::size_t pool_bytes;
  const Outputs& out;
  const Device<float>& bounds;
  cudaStream_t stream;

  // cold: launches take turns over the pool, which is larger than the last-level cache; hot: all read one place.
  void print(LogitType type, int rows, int vocab, int offset, bool comma) const {
    const std::size_t bytes = std::size_t(rows) * vocab * size_of(type), pitch = (bytes + 4095) / 4096 * 4096 + 4096;
    const int places = int(pool_bytes / pitch);
    Device<char> workspace(workspace_bytes(rows, vocab));
    Device<unsigned> sink(1);
    CHECK(prepare(workspace.at, rows, stream));
    int turn = 0;
    const auto next = [&] { return pool.at + std::size_t(turn++ % places) * pitch + offset * size_of(type); };
    const auto decide = [&](const char* at, cudaStream_t s) {
      CHECK(launch({at, type, rows, vocab, vocab}, bounds.at, out.pointers(), workspace.at, s));
    };
    const double cold = microseconds([&](int, cudaStream_t s) { decide(next(), s); }, stream);
    const double hot = microseconds([&](int, cudaStream_t s) { decide(pool.at + offset * size_of(type), s); }, stream);
    const double prepared = microseconds([&](int, cudaStream_t s) {
      CHECK(prepare(workspace.at, rows, s));
      decide(next(), s);
    }, stream);
    const std::size_t loads = bytes / 16;
    const unsigned blocks = unsigned((loads + 256 * kReadLoads - 1) / (256 * kReadLoads));
    const double read = microseconds([&](int, cudaStream_t s) {
      read_all<<<blocks, 256, 0, s>>>(reinterpret_cast<const uint4*>(next() - offset * size_of(type)), loads, sink.at);
    }, stream);
    std::printf("    {\"type\": \"%s\", \"rows\": %d, \"vocab\": %d, \"offset\": %d, \"bytes\": %zu, \"us\": %.3f, "
                "\"gb_per_s\": %.1f, \"read_us\": %.3f, \"read_gb_per_s\": %.1f, \"hot_us\": %.3f, "
                "\"with_prepare_us\": %.3f}%s\n", kTypeNames[int(type)], rows, vocab, offset, bytes, cold,
                bytes / cold / 1e3, read, bytes / read / 1e3, hot, prepared, comma ? "," : "");
  }
};

void time_all(const cudaDeviceProp& device, cudaStream_t stream) {
  constexpr int kMostRows = 256;
  const std::size_t pool_bytes = std::max<std::size_t>(std::size_t{512} << 20, 8 * std::size_t(device.l2CacheSize));
  const Device<char> pool(pool_bytes);
  const Outputs out(kMostRows);
  const std::vector<float> host(kMostRows * 3, 0.5f);
  const Device<float> bounds(host.size());
  CHECK(cudaMemcpy(bounds.at, host.data(), host.size() * sizeof(float), cudaMemcpyHostToDevice));
  const Timing timing{pool, pool_bytes, out, bounds, stream};
  for (LogitType type : kTypes) {
    std::fprintf(stderr, "timing %s\n", kTypeNames[int(type)]);
    fill<<<unsigned((pool_bytes / 4 + 255) / 256), 256, 0, stream>>>(reinterpret_cast<std::uint32_t*>(pool.at),
                                                                     pool_bytes / 4, type);
    CHECK(cudaGetLastError());
    for (int vocab : {1000, 4096, 32000, 49152, 128256, 151936}) {
      for (int rows : {1, 2, 8, 33, 256}) timing.print(type, rows, vocab, 0, true);
    }
    for (int rows : {1, 256}) timing.print(type, rows, 49152, 1, type != LogitType::kBFloat16 || rows != 256);
  }
}

}  // namespace

int main() {
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));  // one that waits for the default stream's copies
  std::fprintf(stderr, "%s, sm_%d%d\n", device.name, device.major, device.minor);
  check_refusals(stream);
  check_strictness(stream);
  for (LogitType type : kTypes) {
    for (int vocab : {1, 2, 7, 1000, 4096, 4097, 32000, 49152, 50257, 128256, 151936}) {
      check_vocab(type, vocab, stream);
      check_carried(type, vocab, stream);
      std::fprintf(stderr, "checked %s, vocab %d: %ld mismatches so far\n", kTypeNames[int(type)], vocab, mismatches);
    }
  }
  const bool conditions = check_conditions(stream);
  std::fprintf(stderr, "conditional graphs: %s; %ld checks, %ld mismatches\n", conditions ? "checked" : "not here",
               checked, mismatches);
  std::printf("{\"device\": \"%s\", \"sm\": %d, \"sms\": %d, \"l2_bytes\": %d, \"cuda\": %d, \"checks\": %ld, "
              "\"mismatches\": %ld, \"conditional_graphs\": %s, \"worst_probability_error\": %.3g, "
              "\"worst_entropy_error\": %.3g,\n", device.name, device.major * 10 + device.minor,
              device.multiProcessorCount, device.l2CacheSize, CUDART_VERSION, checked, mismatches,
              conditions ? "true" : "false", worst_probability, worst_entropy);
  std::printf("  \"empty_us\": %.3f, \"timings\": [\n",
              microseconds([](int, cudaStream_t s) { empty<<<1, 32, 0, s>>>(); }, stream));
  time_all(device, stream);
  std::printf("  ]}\n");
  CHECK(cudaDeviceSynchronize());
  return mismatches ? 1 : 0;
}
