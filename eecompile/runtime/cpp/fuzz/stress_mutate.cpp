// Bundles and tokenizers changed at random, each read or refused: no crash, no second of work, no heap beyond bounds.
//
// A number names a mutation: `--from N --count 1` does it again.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <new>
#include <set>

#include "bundle_files.h"
#include "eecompile/bundle.h"
#include "eecompile/tokenizer.h"
#include "files.h"
#include "heap.h"
#include "stress.h"
#include "tree.h"

extern "C" void __sanitizer_set_death_callback(void (*)()) __attribute__((weak));

namespace eecompile::stress {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kDigest = "\n \"digest\": \"";  // where a document has its own
std::int64_t current = 0;  // what a sanitizer's report is about

void say_current() { std::fprintf(stderr, "mutation %lld\n", static_cast<long long>(current)); }

double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// What all mutations came to.
struct Tally {
  std::map<std::string, std::int64_t> ends;
  std::set<std::string> reasons;
  double slowest = 0, widest = 0;
  std::int64_t ran = 0;

  void add(const Status& status, double seconds, std::int64_t peak, std::int64_t bytes) {
    static constexpr const char* kNames[] = {"ok",        "usage",   "context_full", "uncalibrated", "missing_backend",
                                             "integrity", "numeric", "unsupported",  "cancelled",    "internal"};
    const std::string end = kNames[static_cast<int>(status.code)];
    ++ends[end];
    if (end != "ok" && end != "integrity" && end != "unsupported") broken(end + ": " + status.text());
    if (!status.ok() && (status.what.empty() || status.where.empty() || status.mend.empty()))
      broken("a refusal that does not say what, where and how to mend it: " + status.text());
    reasons.insert(status.what.substr(0, 60));
    if (seconds > 1) broken("mutation " + std::to_string(current) + " took " + std::to_string(seconds) + " s");
    slowest = std::max(slowest, seconds);
    widest = std::max(widest, static_cast<double>(peak) / static_cast<double>(std::max<std::int64_t>(bytes, 4096)));
  }

  Report report() const {
    return {{"ends", ends},       {"reasons", reasons.size()}, {"slowest_seconds", slowest},
            {"peak_per_byte", widest}, {"ran", ran}};
  }
};

// A bundle whose documents are rewritten, and put back.
class Patient {
 public:
  explicit Patient(const std::string& root) : root_(root) {
    Result<std::map<std::string, std::int64_t>> listed = list_files(root);
    if (!listed.ok()) broken(listed.status().text());
    for (const auto& [name, size] : *listed) {
      names_.push_back(name);
      if (name != "manifest.json" && !is_overlay(name)) continue;
      texts_[name] = read_file(root + "/" + name);
      documents_[name] = Json::parse(texts_[name]);
    }
  }

  // Changes something; returns the bytes of all documents.
  std::int64_t hurt(Random& random) {
    if (random.below(8) == 0) {
      undo_ = disturb(root_, names_, root_ + ".aside", random);
      return size();
    }
    auto chosen = documents_.begin();
    std::advance(chosen, random.below(2) == 0 ? 0 : random.below(documents_.size()));  // "manifest.json" sorts first
    Json changed = chosen->second;
    mutate(changed, random);
    std::map<std::string, std::string> written = {{chosen->first, sealed(changed)}};
    if (chosen == documents_.begin() && random.below(2) == 0)  // else the overlays are of another manifest
      for (const auto& [name, document] : documents_)
        if (name != chosen->first) written[name] = follower(document, written[chosen->first]);
    if (random.below(4) == 0) scratch(written[chosen->first], random);
    for (const auto& [name, text] : written) write_file(root_ + "/" + name, text);
    undo_ = [this, written] {
      for (const auto& [name, text] : written) write_file(root_ + "/" + name, texts_.at(name));
    };
    return size();
  }

  void heal() { undo_(); }

 private:
  std::int64_t size() const {
    std::int64_t sum = 0;
    for (const auto& [name, document] : documents_) {
      std::error_code fault;
      const auto own = fs::symlink_status(root_ + "/" + name).type() == fs::file_type::regular
                           ? fs::file_size(root_ + "/" + name, fault)
                           : 0;
      sum += fault ? 0 : static_cast<std::int64_t>(own);
    }
    return sum;
  }

  // An overlay of this manifest.
  static std::string follower(Json overlay, const std::string& manifest) {
    const std::size_t at = manifest.find(kDigest);
    overlay["core"] = at == manifest.npos ? "" : manifest.substr(at + kDigest.size(), 64);
    return sealed(std::move(overlay));
  }

  std::string root_;
  std::vector<std::string> names_;
  std::map<std::string, Json> documents_;
  std::map<std::string, std::string> texts_;  // as they stand on disk
  std::function<void()> undo_;
};

// What the reader took, run as far as it goes: any end is fine but a crash.
void run(const std::string& root, const std::string& onnxruntime) {
  OpenOptions open;
  open.threads = 2, open.integrity = Integrity::kSize, open.onnxruntime = onnxruntime;
  const Result<Bundle> bundle = Bundle::open(root, open);
  if (!bundle.ok()) return;
  SessionOptions how;
  for (const char* mode : {"exact", "confident"}) {
    how.mode = mode;
    Result<Session> session = bundle->session(how);
    if (!session.ok()) continue;
    GenerateOptions options;
    options.max_new_tokens = 6;
    static_cast<void>(session->generate({1, 2, 3}, options));
  }
}

void tokenize(const Tokenizer& tokenizer) {
  for (const char* said : {"Hello, wide  world!\n42 caf\xC3\xA9s", "\xE6\xBC\xA2\xE5\xAD\x97 \xFF\xF0\x9F\x98\x80", " "})
    static_cast<void>(tokenizer.decode(tokenizer.encode(said)));
  static_cast<void>(tokenizer.decode({0, 1, tokenizer.size(), -1, std::int64_t{1} << 40}, false));
}

}  // namespace

Report read_one(const Options& options) {
  reset_peak();
  const double began = processor_seconds();
  const Result<BundleFiles> read = read_bundle(options.places[0], Integrity::kSize);
  return {{"code", static_cast<int>(read.status().code)},
          {"what", read.status().what},
          {"seconds", processor_seconds() - began},
          {"peak_bytes", peak_bytes()}};
}

Report tokenize_one(const Options& options) {
  reset_peak();
  const double began = processor_seconds();
  std::int64_t ids = -1;  // where memory did not do
  try {
    const Result<Tokenizer> tokenizer = Tokenizer::open(options.places[0]);
    if (!tokenizer.ok()) broken(tokenizer.status().text());
    ids = static_cast<std::int64_t>(tokenizer->encode(options.text("text")).size());
  } catch (const std::bad_alloc&) {
  }
  return {{"ids", ids}, {"seconds", processor_seconds() - began}, {"peak_bytes", peak_bytes()}};
}

Report mutate_bundles(const Options& options) {
  const std::string root = options.places[0], onnxruntime = options.text("onnxruntime");
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(say_current);
  Patient patient(root);
  Tally tally;
  const std::int64_t from = options.integer("from", 0), engines = options.integer("engines", 0);
  for (current = from; current < from + options.integer("count", 1); ++current) {
    Random random(static_cast<std::uint64_t>(current));
    const std::int64_t bytes = patient.hurt(random);
    const double began = processor_seconds();
    reset_peak();
    const Result<BundleFiles> read = read_bundle(root, Integrity::kSize);
    tally.add(read.status(), processor_seconds() - began, peak_bytes(), bytes);
    if (read.ok() && tally.ran < engines) {
      ++tally.ran;
      run(root, onnxruntime);
    }
    patient.heal();
  }
  return tally.report();
}

Report mutate_tokenizers(const Options& options) {
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(say_current);
  std::vector<Json> documents;
  for (const std::string& place : options.places) documents.push_back(Json::parse(read_file(place)));
  Tally tally;
  const std::int64_t from = options.integer("from", 0);
  for (current = from; current < from + options.integer("count", 1); ++current) {
    Random random(static_cast<std::uint64_t>(current));
    Json changed = documents[random.below(documents.size())];
    for (std::size_t left = 1 + random.below(2); left > 0; --left) {  // as often in the small parts as in the vocabulary
      std::vector<Json*> parts = {&changed};
      for (Json& part : changed)
        if (part.is_structured()) parts.push_back(&part);
      mutate(*parts[random.below(parts.size())], random);
    }
    std::string text = changed.dump(-1, ' ', false, Json::error_handler_t::replace);
    if (random.below(4) == 0) scratch(text, random);
    const double began = processor_seconds();
    reset_peak();
    try {
      const Result<Tokenizer> tokenizer = Tokenizer::parse(text, "tokenizer.json");
      tally.add(tokenizer.status(), processor_seconds() - began, peak_bytes(), static_cast<std::int64_t>(text.size()));
      if (tokenizer.ok()) tokenize(*tokenizer);
      tally.ran += tokenizer.ok();
    } catch (const std::bad_alloc&) {  // of a file that makes much of little
      ++tally.ends["much"];
    }
    if (processor_seconds() - began > 2) broken("mutation " + std::to_string(current) + " tokenizes for seconds");
  }
  return tally.report();
}

}  // namespace eecompile::stress
