# What `cmake --install` puts down: a package for find_package(eecompile), with the targets eecompile::eecompile (static,
# for C++) and eecompile::c (libeecompile.so, for C and other languages), and the commands.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set_target_properties(eecompile_c PROPERTIES EXPORT_NAME c)
install(TARGETS eecompile eecompile_tokenizer eecompile_c EXPORT eecompile
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS eecompile-run eecompile-bench RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
if(TARGET eecompile-engines)
  install(TARGETS eecompile-engines RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(DIRECTORY include/ tokenizer/include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

set(EECOMPILE_PACKAGE ${CMAKE_INSTALL_LIBDIR}/cmake/eecompile)
install(EXPORT eecompile NAMESPACE eecompile:: DESTINATION ${EECOMPILE_PACKAGE} FILE eecompileTargets.cmake)
install(FILES eecompileConfig.cmake DESTINATION ${EECOMPILE_PACKAGE})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/eecompileConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/eecompileConfigVersion.cmake DESTINATION ${EECOMPILE_PACKAGE})
