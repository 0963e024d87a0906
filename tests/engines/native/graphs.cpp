// A double of libcuda's streams, events and graphs (doubles.h). A graph's nodes stand one behind the other, as one
// stream's work does: what would run beside something ends the process, and so does what CUDA forbids of branches.
#include <algorithm>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "doubles.h"

struct CUgraphNode_st {
  std::string kind;
  std::function<void()> work;
  doubles::Condition condition = 0;  // of a branch, whose body runs where it is not 0
  CUgraph body = nullptr;
};
struct CUgraph_st {
  CUgraph root = nullptr;  // the graph that this is a body in, or itself
  std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
  std::vector<std::unique_ptr<CUgraph_st>> bodies;  // of this graph's own branches
};
struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
  CUgraph graph = nullptr;  // of one with branches, which has to live as long
};
struct CUstream_st {
  std::vector<std::function<void()>> queue;
  std::unique_ptr<CUgraph_st> own;
  CUgraph graph = nullptr;  // that is being captured
  std::thread::id thread;
};
struct CUevent_st {
  CUstream stream = nullptr;
  std::size_t work = 0;
};

namespace doubles {
namespace {

std::set<CUstream> streams;
std::set<CUgraph> graphs;
std::set<CUgraphExec> executables;
std::map<Condition, std::pair<CUgraph, bool>> conditions;  // the graph of each, and its value
CUgraph launched = nullptr;

CUstream_st& stream_of(CUstream stream) {
  in_context("a call");
  if (streams.count(stream) == 0) broken("no stream that was made: the default stream, or one that is gone");
  return *stream;
}

bool here(const CUstream_st& stream) { return stream.graph != nullptr && stream.thread == std::this_thread::get_id(); }

void begin(CUstream stream, CUgraph graph) {
  CUstream_st& found = stream_of(stream);
  if (found.graph != nullptr) broken("a capture inside a capture");
  if (!found.queue.empty()) broken("a capture begins before the run before it was waited for");
  found.graph = graph;
  found.thread = std::this_thread::get_id();
}

std::vector<CUgraph> within(CUgraph graph) {
  std::vector<CUgraph> found = {graph};
  for (const auto& body : graph->bodies)
    for (CUgraph one : within(body.get())) found.push_back(one);
  return found;
}

CUgraphNode last_of(CUgraph graph) { return graph->nodes.empty() ? nullptr : graph->nodes.back().get(); }

void run(CUgraph graph) {
  for (const auto& node : graph->nodes)
    if (node->body == nullptr)
      node->work();
    else if (conditions.at(node->condition).second)
      run(node->body);
}

void launch(CUgraph graph) {
  for (auto& [condition, known] : conditions)
    if (known.first->root == graph) known.second = false;
  launched = graph;
  run(graph);
  launched = nullptr;
}

bool is_made(CUgraph graph) {
  return std::any_of(executables.begin(), executables.end(), [&](CUgraphExec one) { return one->graph == graph; });
}

// That each condition of these graphs has one branch, and nothing is in a body that may not be.
bool is_legal(const std::vector<CUgraph>& parts) {
  std::multiset<Condition> used, known;
  for (CUgraph part : parts)
    for (const auto& node : part->nodes) {
      if (node->body != nullptr) used.insert(node->condition);
      if (part != parts[0] && node->kind != "kernel" && node->kind != "memcpy" && node->kind != "branch") return false;
    }
  for (const auto& [condition, one] : conditions)
    if (one.first->root == parts[0]) known.insert(condition);
  if (used != known) broken("a condition without its one branch, or a branch of another graph's condition");
  return true;
}

}  // namespace

std::size_t streams_and_graphs() { return streams.size() + graphs.size() + executables.size(); }

bool captured(CUstream stream) { return stream_of(stream).graph != nullptr; }

void not_capturing(const std::string& what) {
  const Lock lock = locked();
  for (const CUstream stream : streams)
    if (here(*stream)) broken(what + " during a capture");
}

void add_work(CUstream stream, std::function<void()> work, const std::string& kind) {
  const Lock lock = locked();
  CUstream_st& found = stream_of(stream);
  if (found.graph == nullptr) return found.queue.push_back(std::move(work));
  if (!here(found)) broken("another thread's work slips into a capture");
  found.graph->nodes.push_back(std::make_unique<CUgraphNode_st>(CUgraphNode_st{kind, std::move(work), 0, nullptr}));
}

void begin_into(CUstream stream, CUgraph graph, CUgraphNode after) {
  const Lock lock = locked();
  if (last_of(graph) != after) broken("captured work runs beside what the graph has, instead of behind it");
  begin(stream, graph);
}

CUgraphNode last_node(CUstream stream) {
  const Lock lock = locked();
  const CUgraph graph = stream_of(stream).graph;
  return graph == nullptr ? nullptr : last_of(graph);
}

Condition new_condition(CUgraph graph) {
  const Lock lock = locked();
  static Condition last = 100;
  return conditions[++last] = {graph, false}, last;
}

void set_condition(Condition condition, bool value) {
  if (launched == nullptr || conditions.count(condition) == 0 || conditions[condition].first->root != launched)
    broken("a condition is set from outside of its graph");
  conditions[condition].second = value && setting("branches", "right") != "wrong";
}

CUgraphNode add_branch(CUgraph graph, CUgraphNode after, Condition condition, CUgraph* body) {
  const Lock lock = locked();
  not_capturing("a branch is added");
  if (after == nullptr || last_of(graph) != after) broken("a branch beside what sets its condition, not behind it");
  if (conditions.count(condition) == 0 || conditions[condition].first != graph) broken("another graph's condition");
  graph->bodies.push_back(std::make_unique<CUgraph_st>());
  *body = graph->bodies.back().get();
  (*body)->root = graph->root;
  graph->nodes.push_back(std::make_unique<CUgraphNode_st>(CUgraphNode_st{"branch", {}, condition, *body}));
  count("branches");
  return last_of(graph);
}

}  // namespace doubles

using namespace doubles;

CUresult CUDAAPI cuStreamCreate(CUstream* stream, unsigned flags) {
  const Lock lock = locked();
  if (flags != CU_STREAM_NON_BLOCKING) broken("a stream that waits for the default stream");
  streams.insert(*stream = new CUstream_st());
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuStreamDestroy(CUstream stream) {
  const Lock lock = locked();
  return streams.erase(stream), delete stream, CUDA_SUCCESS;
}
CUresult CUDAAPI cuEventCreate(CUevent* event, unsigned flags) {
  if (flags != CU_EVENT_DISABLE_TIMING) broken("an event that takes times");
  return *event = new CUevent_st(), CUDA_SUCCESS;
}
CUresult CUDAAPI cuEventDestroy(CUevent event) { return delete event, CUDA_SUCCESS; }
CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream) {
  const Lock lock = locked();
  not_capturing("an event is recorded");
  *event = {stream, stream_of(stream).queue.size()};
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuEventSynchronize(CUevent event) {
  const Lock lock = locked();
  not_capturing("somebody waits");
  auto& queue = stream_of(event->stream).queue;
  for (; event->work > 0; --event->work) {
    queue.front()();
    queue.erase(queue.begin());
  }
  return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
  const Lock lock = locked();
  REFUSED("cuStreamBeginCapture");
  if (mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) broken("a capture that forbids other threads to allocate");
  auto graph = std::make_unique<CUgraph_st>();
  begin(stream, graph->root = graph.get());
  return stream->own = std::move(graph), CUDA_SUCCESS;
}
CUresult CUDAAPI cuStreamEndCapture(CUstream stream, CUgraph* graph) {
  const Lock lock = locked();
  CUstream_st& found = stream_of(stream);
  if (!here(found)) broken("the end of a capture of another thread's");
  *graph = std::exchange(found.graph, nullptr);
  if (found.own) graphs.insert(found.own.release());
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuGraphCreate(CUgraph* graph, unsigned) {
  const Lock lock = locked();
  REFUSED("cuGraphCreate");
  *graph = new CUgraph_st();
  return graphs.insert((*graph)->root = *graph), CUDA_SUCCESS;
}
CUresult CUDAAPI cuGraphInstantiateWithFlags(CUgraphExec* made, CUgraph graph, unsigned long long) {
  const Lock lock = locked();
  const std::vector<CUgraph> parts = within(graph);
  if (parts.size() > 1 && is_made(graph)) broken("a graph with branches has one executable at a time");
  if (!is_legal(parts)) return CUDA_ERROR_NOT_SUPPORTED;
  *made = new CUgraphExec_st();
  if (parts.size() > 1)
    **made = {{[graph] { launch(graph); }}, graph};
  else
    for (const auto& node : graph->nodes) (*made)->work.push_back(node->work);
  return executables.insert(*made), CUDA_SUCCESS;
}
CUresult CUDAAPI cuGraphLaunch(CUgraphExec graph, CUstream stream) {
  REFUSED("cuGraphLaunch");
  not_capturing("a graph is launched");
  for (const auto& work : graph->work) add_work(stream, work);
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuGraphDestroy(CUgraph graph) {
  const Lock lock = locked();
  if (graphs.erase(graph) == 0) broken("a body is destroyed, which is its graph's own, or a graph twice");
  if (is_made(graph)) broken("a graph goes before its executable, whose conditions it owns");
  for (auto one = conditions.begin(); one != conditions.end();)
    one = one->second.first->root == graph ? conditions.erase(one) : std::next(one);
  return delete graph, CUDA_SUCCESS;
}
CUresult CUDAAPI cuGraphExecDestroy(CUgraphExec graph) {
  const Lock lock = locked();
  return executables.erase(graph), delete graph, CUDA_SUCCESS;
}
