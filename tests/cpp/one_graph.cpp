// Runs one graph once by ONNX Runtime alone, with the options of the C++ runtime; nothing of that runtime is in here.
//
//   one_graph LIBRARY MODEL OUTPUT NAME:DTYPE:D0,D1,...:FILE ...      bytes of the output OUTPUT, float32, on stdout
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include <onnxruntime_c_api.h>

namespace {

const OrtApi* api = nullptr;

void check(OrtStatus* status) {
  if (status == nullptr) return;
  std::fprintf(stderr, "%s\n", api->GetErrorMessage(status));
  std::exit(1);
}

std::vector<std::string> parts_of(const std::string& text, char between) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, between);) parts.push_back(part);
  return parts;
}

struct Input {
  std::string name, bytes;
  OrtValue* value = nullptr;
};

Input input_of(const std::string& word, const OrtMemoryInfo* memory) {
  const std::vector<std::string> parts = parts_of(word, ':');
  std::ifstream file(parts.at(3), std::ios::binary);
  Input input{parts[0], std::string(std::istreambuf_iterator<char>(file), {}), nullptr};
  std::vector<std::int64_t> shape;
  for (const std::string& size : parts_of(parts[2], ',')) shape.push_back(std::stoll(size));
  const ONNXTensorElementDataType type = parts[1] == "int64"  ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
                                         : parts[1] == "bool" ? ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL
                                                              : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  input.bytes.reserve(64);  // on the heap, where it stays when it is moved
  check(api->CreateTensorWithDataAsOrtValue(memory, input.bytes.data(), input.bytes.size(), shape.data(), shape.size(),
                                            type, &input.value));
  return input;
}

}  // namespace

int main(int count, char** words) {
  if (count < 4) return 2;
  void* library = dlopen(words[1], RTLD_NOW);
  if (library == nullptr) return std::fprintf(stderr, "%s\n", dlerror()), 1;
  using Base = const OrtApiBase* (*)();
  api = reinterpret_cast<Base>(dlsym(library, "OrtGetApiBase"))()->GetApi(ORT_API_VERSION);
  OrtEnv* environment = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  OrtMemoryInfo* memory = nullptr;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "one", &environment));
  check(api->CreateSessionOptions(&options));
  check(api->SetIntraOpNumThreads(options, 1));
  check(api->AddSessionConfigEntry(options, "session.qdq_matmulnbits_accuracy_level", "4"));
  check(api->CreateSession(environment, words[2], options, &session));
  check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  std::vector<Input> inputs;
  for (int i = 4; i < count; ++i) inputs.push_back(input_of(words[i], memory));
  std::vector<const char*> names;
  std::vector<const OrtValue*> values;
  for (const Input& input : inputs) names.push_back(input.name.c_str()), values.push_back(input.value);
  OrtValue* output = nullptr;
  check(api->Run(session, nullptr, names.data(), values.data(), values.size(), &words[3], 1, &output));
  OrtTensorTypeAndShapeInfo* shape = nullptr;
  check(api->GetTensorTypeAndShape(output, &shape));
  std::size_t elements = 0;
  check(api->GetTensorShapeElementCount(shape, &elements));
  void* data = nullptr;
  check(api->GetTensorMutableData(output, &data));
  std::fwrite(data, sizeof(float), elements, stdout);
  std::fflush(stdout);
  std::_Exit(0);
}
