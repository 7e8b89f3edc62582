include(CMakeParseArguments)
include(CTest)

# Copy a module's files below the build tree's module folder and install that folder.
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(STUB "WITH_GENERIC_TESTS;WITH_SUBDIR;VERBOSE" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(STUB_UNPARSED_ARGUMENTS OR NOT STUB_NAME)
    message(FATAL_ERROR "slicerMacroBuildScriptedModule: NAME is missing, or unknown: ${STUB_UNPARSED_ARGUMENTS}")
  endif()
  set(stub_outputs)
  foreach(stub_file IN LISTS STUB_SCRIPTS STUB_RESOURCES)
    if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${stub_file} OR stub_file MATCHES "\\.\\.")
      message(FATAL_ERROR "slicerMacroBuildScriptedModule: no file of the module: ${stub_file}")
    endif()
    set(stub_output ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}/${stub_file})
    add_custom_command(
      OUTPUT ${stub_output}
      DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${stub_file}
      COMMAND ${CMAKE_COMMAND} -E copy ${CMAKE_CURRENT_SOURCE_DIR}/${stub_file} ${stub_output}
      VERBATIM
      )
    list(APPEND stub_outputs ${stub_output})
  endforeach()
  add_custom_target(${STUB_NAME} ALL DEPENDS ${stub_outputs})
  install(
    DIRECTORY ${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}/
    DESTINATION ${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}
    )
endmacro()

# Run the unittest test cases of a file in Slicer.
macro(slicer_add_python_unittest)
  cmake_parse_arguments(STUB "" "SCRIPT;TESTNAME_PREFIX" "SLICER_ARGS" ${ARGN})
  if(NOT EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/${STUB_SCRIPT})
    message(FATAL_ERROR "slicer_add_python_unittest: there is no ${STUB_SCRIPT}")
  endif()
  get_filename_component(stub_name ${STUB_SCRIPT} NAME_WE)
  set(stub_folders "['${CMAKE_CURRENT_BINARY_DIR}', '${CMAKE_CURRENT_SOURCE_DIR}']")
  add_test(
    NAME py_${STUB_TESTNAME_PREFIX}${stub_name}
    COMMAND ${Slicer_LAUNCHER_EXECUTABLE} --no-splash --testing ${STUB_SLICER_ARGS}
            --python-code "import slicer.testing\\; slicer.testing.runUnitTest(${stub_folders}, '${stub_name}')"
    )
endmacro()
