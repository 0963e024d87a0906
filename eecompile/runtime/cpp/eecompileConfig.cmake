# find_package(eecompile): eecompile::eecompile (static, C++17) and eecompile::c (shared, C). ONNX Runtime is loaded at run
# time; where a prefix has it, programs are told where, so that its name alone will do.
include(CMakeFindDependencyMacro)
find_dependency(Threads)
include(${CMAKE_CURRENT_LIST_DIR}/eecompileTargets.cmake)

find_file(eecompile_ONNXRUNTIME libonnxruntime.so.1 PATH_SUFFIXES lib)
if(eecompile_ONNXRUNTIME)
  get_filename_component(eecompile_FOLDER ${eecompile_ONNXRUNTIME} DIRECTORY)
  set_property(TARGET eecompile::eecompile APPEND PROPERTY INTERFACE_LINK_OPTIONS "-Wl,-rpath,${eecompile_FOLDER}")
endif()
