# Write the description of the extension into the build tree, as Slicer does from the same variables.
include_guard(DIRECTORY)

set(stub_description)
foreach(stub_key DEPENDS HOMEPAGE CONTRIBUTORS CATEGORY ICONURL STATUS DESCRIPTION SCREENSHOTURLS)
  if(NOT EXTENSION_${stub_key})
    message(FATAL_ERROR "EXTENSION_${stub_key} is not set.")
  endif()
  string(TOLOWER ${stub_key} stub_keyword)
  string(APPEND stub_description "${stub_keyword} ${EXTENSION_${stub_key}}\n")
endforeach()
file(WRITE ${CMAKE_BINARY_DIR}/${PROJECT_NAME}.s4ext "${stub_description}")
