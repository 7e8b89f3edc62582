# A stand-in for a Slicer build tree, so that the extension can be configured, built, installed and tested without one:
#
#   cmake -S . -B BUILD -DSlicer_DIR=Testing/stub_slicer -DSTUB_SLICER_PYTHON=.venv/bin/python \
#         -DCMAKE_TOOLCHAIN_FILE=Testing/stub_slicer/no_compiler.cmake
#   cmake --build BUILD && cmake --install BUILD --prefix DIR && ctest --test-dir BUILD --no-tests=error
#
# The macros have the names, arguments and effects on files of Slicer's own; what they do not do (translations, byte
# code, the generic module test) is left to a real Slicer. The launcher is the host in Testing/host.

set(Slicer_VERSION 5.12)
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/Extension.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/Extension.cmake)
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-${Slicer_VERSION}/qt-scripted-modules)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR ${Slicer_QTSCRIPTEDMODULES_LIB_DIR})

set(STUB_SLICER_PYTHON "" CACHE FILEPATH "Python with slicer-core, that runs the host")
if(NOT EXISTS "${STUB_SLICER_PYTHON}")
  message(FATAL_ERROR "Set STUB_SLICER_PYTHON to a Python that has what the tests need.")
endif()
get_filename_component(stub_testing ${CMAKE_CURRENT_LIST_DIR} DIRECTORY)
set(Slicer_LAUNCHER_EXECUTABLE ${CMAKE_COMMAND} -E env PYTHONPATH=${stub_testing} ${STUB_SLICER_PYTHON} -m host)
