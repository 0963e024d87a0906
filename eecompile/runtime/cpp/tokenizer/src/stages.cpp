#include "stages.h"

#include <utility>

#include "byte_level.h"
#include "utf8.h"

namespace eecompile::tok {

namespace {

using Out = std::vector<std::string>;

constexpr const char* kBrokenByte = "\xEF\xBF\xBD";

class Spaced : public Stage {
 public:
  void push(std::string token, Out& out) override {
    out.push_back(first_ ? std::move(token) : " " + token);
    first_ = false;
  }

 private:
  bool first_ = true;
};

// Bytes of a character that is not whole yet wait.
class ByteLevel : public Stage {
 public:
  void push(std::string token, Out& out) override {
    waiting_ += chars_to_bytes(token);
    std::size_t end = 0;
    while (end < waiting_.size()) {
      const Scanned next = scan(waiting_, end);
      if (next.cut) break;
      end += next.size;
    }
    if (end > 0) out.push_back(lossy(std::string_view(waiting_).substr(0, end)));
    waiting_.erase(0, end);
  }

  void finish(Out& out) override {
    if (!waiting_.empty()) out.push_back(lossy(waiting_));
    waiting_.clear();
  }

 private:
  std::string waiting_;
};

int hex(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  const char low = static_cast<char>(digit | 32);
  return low >= 'a' && low <= 'f' ? low - 'a' + 10 : -1;
}

// A run of <0x..> is either UTF-8 as a whole, or every byte of it is U+FFFD: it waits for what ends it.
class ByteFallback : public Stage {
 public:
  void push(std::string token, Out& out) override {
    const bool shaped = token.size() == 6 && token.compare(0, 3, "<0x") == 0 && token[5] == '>';
    const int high = shaped ? hex(token[3]) : -1, low = shaped ? hex(token[4]) : -1;
    const bool plus = shaped && token[3] == '+' && low >= 0;  // Rust reads a sign, too
    if ((high >= 0 && low >= 0) || plus) {
      bytes_.push_back(static_cast<char>(static_cast<unsigned char>(plus ? low : high * 16 + low)));
      return;
    }
    finish(out);
    out.push_back(std::move(token));
  }

  void finish(Out& out) override {
    if (bytes_.empty()) return;
    bool valid = true;
    for (std::size_t at = 0; valid && at < bytes_.size();) {
      const Scanned next = scan(bytes_, at);
      valid = next.valid;
      at += next.size;
    }
    for (std::size_t i = 0; !valid && i < bytes_.size(); ++i) out.emplace_back(kBrokenByte);
    if (valid) out.push_back(bytes_);
    bytes_.clear();
  }

 private:
  std::string bytes_;
};

std::string replaced(const std::string& text, const std::string& from, const std::string& to) {
  std::string made;
  std::size_t last = 0;
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, last)) {
    made.append(text, last, at - last).append(to);
    last = at + from.size();
  }
  return made.append(text, last, std::string::npos);
}

// BERT's rules for punctuation and English contractions.
std::string cleaned(std::string text) {
  static const std::pair<const char*, const char*> kRules[] = {
      {" .", "."},    {" ?", "?"},   {" !", "!"},           {" ,", ","},   {" ' ", "'"},  {" n't", "n't"},
      {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kRules) text = replaced(text, from, to);
  return text;
}

class WordPieceStage : public Stage {
 public:
  WordPieceStage(std::string prefix, bool cleanup) : prefix_(std::move(prefix)), cleanup_(cleanup) {}

  void push(std::string token, Out& out) override {
    if (!first_) {
      token = token.compare(0, prefix_.size(), prefix_) == 0 ? token.substr(prefix_.size()) : " " + token;
    }
    first_ = false;
    out.push_back(cleanup_ ? cleaned(std::move(token)) : std::move(token));
  }

 private:
  std::string prefix_;
  bool cleanup_, first_ = true;
};

// The mark becomes a space, in the first token nothing where one is put before texts.
class MetaspaceStage : public Stage {
 public:
  MetaspaceStage(const Metaspace& meta, bool fused) : meta_(meta), fused_(fused) {}

  void push(std::string token, Out& out) override {
    std::string text;
    const bool drops = first_ && meta_.prepend != Metaspace::Prepend::kNever;
    for_each_point(token, [&](char32_t point, std::size_t) {
      if (point != meta_.mark) return append(text, point);
      if (!drops) text.push_back(' ');
    });
    first_ = fused_;
    out.push_back(std::move(text));
  }

 private:
  Metaspace meta_;
  bool fused_, first_ = true;
};

class Replace : public Stage {
 public:
  Replace(Pattern pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}

  void push(std::string token, Out& out) override {
    std::string text;
    for (const Span& span : pattern_.spans(token)) {
      text += span.match ? content_ : token.substr(span.begin, span.end - span.begin);
    }
    out.push_back(std::move(text));
  }

 private:
  Pattern pattern_;
  std::string content_;
};

class Strip : public Stage {
 public:
  Strip(char32_t content, std::size_t start, std::size_t stop) : content_(content), start_(start), stop_(stop) {}

  void push(std::string token, Out& out) override {
    const std::u32string all = points(token);
    std::size_t begin = 0, end = all.size();
    while (begin < all.size() && begin < start_ && all[begin] == content_) ++begin;
    while (end > begin && all.size() - end < stop_ && all[end - 1] == content_) --end;
    std::string text;
    for (std::size_t i = begin; i < end; ++i) append(text, all[i]);
    out.push_back(std::move(text));
  }

 private:
  char32_t content_;
  std::size_t start_, stop_;
};

class StripStart : public Stage {
 public:
  StripStart(char32_t content, std::size_t start) : content_(content), left_(start) {}

  void push(std::string token, Out& out) override {
    std::size_t at = 0;
    for (; left_ > 0 && at < token.size(); --left_) {
      const Decoded next = decode(token, at);
      if (next.point != content_) {
        left_ = 0;
        break;
      }
      at += next.size;
    }
    out.push_back(token.substr(at));
  }

 private:
  char32_t content_;
  std::size_t left_;
};

class Whole : public Stage {
 public:
  explicit Whole(std::unique_ptr<Stage> inner) : inner_(std::move(inner)) {}

  void push(std::string token, Out&) override { text_ += token; }

  void finish(Out& out) override {
    inner_->push(std::move(text_), out);
    inner_->finish(out);
  }

 private:
  std::unique_ptr<Stage> inner_;
  std::string text_;
};

}  // namespace

std::unique_ptr<Stage> spaced_stage() { return std::make_unique<Spaced>(); }

std::unique_ptr<Stage> byte_level_stage() { return std::make_unique<ByteLevel>(); }

std::unique_ptr<Stage> byte_fallback_stage() { return std::make_unique<ByteFallback>(); }

std::unique_ptr<Stage> word_piece_stage(std::string prefix, bool cleanup) {
  return std::make_unique<WordPieceStage>(std::move(prefix), cleanup);
}

std::unique_ptr<Stage> metaspace_stage(const Metaspace& meta, bool fused) {
  return std::make_unique<MetaspaceStage>(meta, fused);
}

std::unique_ptr<Stage> replace_stage(Pattern pattern, std::string content) {
  return std::make_unique<Replace>(std::move(pattern), std::move(content));
}

std::unique_ptr<Stage> strip_stage(char32_t content, std::size_t start, std::size_t stop) {
  return std::make_unique<Strip>(content, start, stop);
}

std::unique_ptr<Stage> strip_start_stage(char32_t content, std::size_t start) {
  return std::make_unique<StripStart>(content, start);
}

std::unique_ptr<Stage> whole_stage(std::unique_ptr<Stage> inner) { return std::make_unique<Whole>(std::move(inner)); }

}  // namespace eecompile::tok
