# scone::table: look-ups in f-gram tables, for other people's programs too. It depends on threads and, where it was
# found, liburing; `cmake --install build --component table --prefix P` installs it alone, for find_package(scone).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

file(GLOB table_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/checkpoint/table/*.cpp)
file(GLOB table_headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/checkpoint/table/*.h)
add_library(scone_table STATIC ${table_sources})
add_library(scone::table ALIAS scone_table)
set_target_properties(scone_table PROPERTIES EXPORT_NAME table POSITION_INDEPENDENT_CODE ON)
target_compile_features(scone_table PUBLIC cxx_std_20)
target_include_directories(scone_table PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                           $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/scone>)
target_compile_options(scone_table PRIVATE $<TARGET_PROPERTY:scone_options,INTERFACE_COMPILE_OPTIONS>)
target_link_libraries(scone_table PUBLIC Threads::Threads PRIVATE $<BUILD_INTERFACE:nlohmann_json::nlohmann_json>)
if(SCONE_HAS_LIBURING)
  target_compile_definitions(scone_table PRIVATE SCONE_HAS_LIBURING)
  target_link_libraries(scone_table PRIVATE scone::liburing)
endif()

set(table_package ${CMAKE_INSTALL_LIBDIR}/cmake/scone)
install(TARGETS scone_table EXPORT scone COMPONENT table ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES ${table_headers} COMPONENT table DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/scone/checkpoint/table)
install(FILES ${PROJECT_SOURCE_DIR}/parallel/error.h COMPONENT table
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/scone/parallel)
install(EXPORT scone NAMESPACE scone:: FILE sconeTargets.cmake COMPONENT table DESTINATION ${table_package})
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/sconeConfig.cmake.in ${PROJECT_BINARY_DIR}/sconeConfig.cmake
                              INSTALL_DESTINATION ${table_package})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/sconeConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/sconeConfig.cmake ${PROJECT_BINARY_DIR}/sconeConfigVersion.cmake
        COMPONENT table DESTINATION ${table_package})
